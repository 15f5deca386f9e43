"""Off-policy estimates beside those of the Open Bandit Pipeline, and the coverage of their intervals in simulations.

    pip install --target FOLDER --no-deps obp seaborn matplotlib tqdm ...   # obp and what it imports, in its own folder
    PYTHONPATH=src:FOLDER python bench/quality/off_policy.py --data open_bandit_small [--table FILE] [--freeze FILE]
    PYTHONPATH=src python bench/quality/off_policy.py --simulate 400 [--table FILE]

``--data`` is a folder with ``impressions.parquet``, rows of the Open Bandit Dataset. Each of its six logs is evaluated
for three targets: the other policy (uniform, or Thompson sampling with the published prior) and a random policy that
depends on context and position. ``--freeze`` writes a small synthetic log with the values of obp, which tests compare
with. ``--simulate`` draws logs of policies whose true value is computed, and counts the intervals that contain it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longrec.metrics import estimate_policy_value
from longrec.metrics.interval import Interval
from longrec.metrics.policy_value import LABELS, format_interval
from longrec.metrics.skewed_interval import skewed_interval

Z = 1.959963984540054
ANY = 1e-12
"""A bound of the effective sample size that refuses nothing."""
Floats = np.ndarray


def softmax(logits: Floats, axis: int = 1) -> Floats:
    """Return probabilities along an axis."""
    p = np.exp(logits - logits.max(axis, keepdims=True))
    return p / p.sum(axis, keepdims=True)


def ours(log: dict[str, Floats], pi: Floats, q: Floats, clip: float) -> dict[str, float]:
    """Return the values of this project. ``pi`` and ``q`` are ``[N, A, P]``."""
    rows, a, at = np.arange(len(log["reward"])), log["action"], log["position"]
    value = estimate_policy_value(
        log["reward"],
        log["propensity"],
        pi[rows, a, at],
        predicted=q[rows, a, at],
        expected=(pi * q).sum(1)[rows, at],
        clip=clip,
        min_effective=ANY,
    )
    return {name: one.value.value for name, one in value.estimates.items()}


def theirs(log: dict[str, Floats], pi: Floats, q: Floats, clip: float) -> dict[str, float]:
    """Return the values of obp. Clipped IPS is its IPW of a target whose weights end at ``clip``."""
    from obp import ope

    names = {"reward": "reward", "action": "action", "position": "position", "pscore": "propensity"}
    common = {key: log[name] for key, name in names.items()}
    rows, a, at = np.arange(len(log["reward"])), log["action"], log["position"]
    clipped = pi.copy()  # the probability above the bound moves to another action, which has no part in the value
    clipped[rows, a, at] = np.minimum(pi[rows, a, at], clip * log["propensity"])
    clipped[rows, (a + 1) % pi.shape[1], at] += pi[rows, a, at] - clipped[rows, a, at]
    model = {"estimated_rewards_by_reg_model": q}
    return {
        "ips": float(ope.InverseProbabilityWeighting().estimate_policy_value(**common, action_dist=pi)),
        "clipped_ips": float(ope.InverseProbabilityWeighting().estimate_policy_value(**common, action_dist=clipped)),
        "snips": float(ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**common, action_dist=pi)),
        "dm": float(ope.DirectMethod().estimate_policy_value(action_dist=pi, position=at, **model)),
        "dr": float(ope.DoublyRobust().estimate_policy_value(**common, action_dist=pi, **model)),
    }


def read_open_bandit(folder: Path) -> dict[tuple[str, str], dict[str, Floats]]:
    """Return the log of each policy and campaign."""
    table = pq.read_table(folder / "impressions.parquet")
    logs = {}
    for policy in ("random", "bts"):
        for campaign in ("all", "men", "women"):
            chosen = pc.and_(pc.equal(table["policy"], policy), pc.equal(table["campaign"], campaign))
            own = table.filter(chosen)
            logs[policy, campaign] = {
                "reward": own["click"].to_numpy().astype(np.float64),
                "propensity": own["propensity_score"].to_numpy().astype(np.float64),
                "action": own["item_id"].to_numpy().astype(np.int64),
                "position": own["position"].to_numpy().astype(np.int64) - 1,
                "context": own["user_feature_0"].to_numpy().astype(np.int64),
            }
    return logs


def build_targets(policy: str, campaign: str, log: dict[str, Floats], items: int) -> dict[str, Floats]:
    """Return targets ``[N, A, P]`` of a log: the policy of the other log, and one that depends on the context."""
    from obp.policy import BernoulliTS

    rows, random = len(log["reward"]), np.random.default_rng(0)
    contexts = random.normal(size=(log["context"].max() + 1, items, 3))
    targets = {"softmax of context": softmax(contexts[log["context"]])}
    if policy == "bts":
        targets["uniform"] = np.full((rows, items, 3), 1 / items)
    else:
        sampler = BernoulliTS(
            n_actions=items, len_list=3, is_zozotown_prior=True, campaign=campaign, random_state=12345
        )
        targets["Thompson"] = sampler.compute_batch_action_dist(n_sim=10_000, n_rounds=rows)
    return targets


def compare_open_bandit(folder: Path) -> list[str]:
    """Return a table of the largest differences to obp, and one of the estimates beside the value on the other log."""
    lines = [
        f"obp {version('obp')}. Largest absolute difference of the five estimators over the targets of each log.",
        "",
        "| log | rows | clicks | targets | " + " | ".join(LABELS.values()) + " |",
        "| --- |" + " --- |" * (3 + len(LABELS)),
    ]
    logs, estimates, largest = read_open_bandit(folder), [], 0.0
    for (policy, campaign), log in logs.items():
        items = int(log["action"].max()) + 1
        random = np.random.default_rng(1)
        q = 0.005 * np.exp(random.normal(size=(log["context"].max() + 1, items, 3)))[log["context"]]
        targets = build_targets(policy, campaign, log, items)
        worst = dict.fromkeys(LABELS, 0.0)
        for target, pi in targets.items():
            for clip in (5.0, 100.0):
                own, other = ours(log, pi, q, clip), theirs(log, pi, q, clip)
                worst = {name: max(worst[name], abs(own[name] - other[name])) for name in LABELS}
            if target != "softmax of context":
                truth = logs["random" if policy == "bts" else "bts", campaign]["reward"]
                estimates.append(describe_estimates(f"{policy} {campaign}", target, log, pi, truth))
        largest = max(largest, *worst.values())
        cells = [f"{policy} {campaign}", f"{len(log['reward']):,}", f"{int(log['reward'].sum())}", ", ".join(targets)]
        lines.append("| " + " | ".join([*cells, *(f"{one:.1e}" for one in worst.values())]) + " |")
    lines += ["", f"Largest of all: {largest:.1e}.", ""]
    lines += ["The estimates of the other policy beside the mean reward of its own log:", ""]
    lines += ["| log | target | IPS | SNIPS | own log of the target | ESS | largest weight | mean weight |"]
    return [*lines, "| --- |" + " --- |" * 7, *estimates]


def describe_estimates(name: str, target: str, log: dict[str, Floats], pi: Floats, truth: Floats) -> str:
    """Return a row of the table of estimates."""
    rows = np.arange(len(log["reward"]))
    shown = pi[rows, log["action"], log["position"]]
    value = estimate_policy_value(log["reward"], log["propensity"], shown, min_effective=ANY)
    own = skewed_interval(truth.mean(), (truth - truth.mean()) / len(truth))
    ips = value.estimates["ips"]
    cells = [format_interval(one) for one in (ips.value, value.estimates["snips"].value, own)]
    cells += [f"{value.effective_rows:,.0f}", f"{ips.largest_weight:.4g}", format_interval(value.mean_weight)]
    return f"| {name} | {target} | " + " | ".join(cells) + " |"


def freeze(file: Path) -> None:
    """Write a small synthetic log and the values of obp."""
    random = np.random.default_rng(7)
    rows, items, positions = 40, 5, 2
    mu, pi = (softmax(random.normal(size=(rows, items, positions)) * scale) for scale in (0.7, 1.2))
    at = random.integers(0, positions, rows)
    action = np.array([random.choice(items, p=mu[i, :, at[i]]) for i in range(rows)])
    q = random.uniform(0.05, 0.5, size=(rows, items, positions))
    reward = (random.random(rows) < q[np.arange(rows), action, at]).astype(np.float64)
    every = np.arange(rows)
    log = {"reward": reward, "propensity": mu[every, action, at], "action": action, "position": at}
    content = {
        "obp": version("obp"),
        "clip": 1.5,
        "reward": reward.tolist(),
        "propensity": log["propensity"].tolist(),
        "target": pi[every, action, at].tolist(),
        "predicted": q[every, action, at].tolist(),
        "expected": (pi * q).sum(1)[every, at].tolist(),
        "values": theirs(log, pi, q, 1.5),
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


SCENARIOS: dict[str, dict[str, Any]] = {
    "light weights": {"logging": 0.5, "target": 1.0, "base": 0.1, "rows": 1_000},
    "light weights, rare rewards": {"logging": 0.5, "target": 1.0, "base": 0.008, "rows": 2_000},
    "heavy-tailed weights": {"logging": 2.0, "target": 1.0, "base": 0.1, "rows": 1_000},
    "heavy-tailed weights, more rows": {"logging": 2.0, "target": 1.0, "base": 0.1, "rows": 8_000},
    "heavier tail": {"logging": 3.0, "target": 1.5, "base": 0.1, "rows": 1_000},
    "heavier tail, more rows": {"logging": 3.0, "target": 1.5, "base": 0.1, "rows": 16_000},
    "users of 5 rows": {"logging": 0.5, "target": 1.0, "base": 0.1, "rows": 1_000, "per_user": 5},
}
"""Logging and target are softmax policies of correlated scores, with these factors. ``base`` is the mean reward."""
CONTEXTS, ITEMS = 400, 20


class Simulation:
    """Policies whose values are sums over all contexts and items, and logs that are drawn from them."""

    def __init__(self, logging: float, target: float, base: float, rows: int, per_user: int = 1) -> None:
        random = np.random.default_rng(1)
        score = random.normal(size=(CONTEXTS, ITEMS))
        self.mu = softmax(logging * (0.6 * score + 0.8 * random.normal(size=score.shape)))
        self.pi, self.q = softmax(target * score), np.minimum(base * np.exp(0.5 * score - 0.125), 0.5)
        self.predicted, self.rows, self.per_user = base * np.exp(0.3 * score), rows, per_user
        self.weight = self.pi / self.mu
        self.truth = float((self.pi * self.q).sum(1).mean())
        self.logged = float((self.mu * self.q).sum(1).mean())

    def clip_truth(self, clip: float) -> float:
        """Return the expectation of clipped IPS."""
        return float((self.mu * np.minimum(self.weight, clip) * self.q).sum(1).mean())

    def draw(self, random: np.random.Generator) -> dict[str, Floats]:
        """Return the columns of a log. Users differ in how often they click, by a factor of mean 1."""
        context = random.integers(0, CONTEXTS, self.rows)
        user = np.arange(self.rows) // self.per_user
        action = np.minimum((random.random(self.rows)[:, None] > self.mu.cumsum(1)[context]).sum(1), ITEMS - 1)
        rate = self.q[context, action]
        if self.per_user > 1:
            rate = rate * random.choice([0.2, 1.8], self.rows)[user]
        return {
            "reward": (random.random(self.rows) < rate).astype(np.float64),
            "propensity": self.mu[context, action],
            "target": self.pi[context, action],
            "predicted": self.predicted[context, action],
            "expected": (self.pi * self.predicted).sum(1)[context],
            "user": user,
        }


def bound_otherwise(
    numerator: Floats, denominator: Floats, span: float, drawn: Floats
) -> dict[str, tuple[float, float]]:
    """Return other intervals of a ratio of means over independent rows.

    Args:
        drawn: how often each of R resamples draws each row, ``[R, N]``.
        span: largest possible weight times reward, for the empirical Bernstein bound (Maurer and Pontil 2009).
    """
    n = len(numerator)
    value = float(numerator.sum() / denominator.sum())
    residual = numerator - value * denominator
    error = math.sqrt(n / (n - 1) * float(residual @ residual)) / float(denominator.sum())
    columns = np.stack([residual, denominator, residual**2, residual * denominator, denominator**2], 1)
    e, x, ee, ex, xx = (drawn @ columns).T
    moved = e / x
    spread = np.sqrt(n / (n - 1) * np.maximum(ee - 2 * moved * ex + moved**2 * xx, 1e-300)) / x
    low, high = np.quantile(moved, [0.025, 0.975])
    t_low, t_high = np.quantile(moved / spread, [0.025, 0.975])
    log = math.log(4 / 0.05)
    width = math.sqrt(2 * float(numerator.var(ddof=1)) * log / n) + 7 * span * log / (3 * (n - 1))
    skewness = float((residual**3).sum()) / float(residual @ residual) ** 1.5
    hall = [3 / skewness * (np.cbrt(1 + skewness * (z - skewness / 6)) - 1) for z in (Z, -Z)]
    return {
        "Hall 1992": (value - hall[0] * error, value - hall[1] * error),
        "normal": (value - Z * error, value + Z * error),
        "bootstrap, percentile": (value + low, value + high),
        "bootstrap, studentized": (value - t_high * error, value - t_low * error),
        "empirical Bernstein": (value - width, value + width),
    }


def simulate(trials: int, alternatives: bool = True) -> list[str]:
    """Return a table of the coverage of 95 % intervals by scenario and estimator."""
    lines = [
        f"{trials} logs of {CONTEXTS} contexts and {ITEMS} items per scenario. Coverage of the true value in percent, "
        "and in parentheses the median width over the true value. Clipped IPS is measured by its own expectation. The "
        "gain is that of SNIPS over the log. Refused: logs whose effective sample size is below 100; the other columns "
        "include them.",
    ]
    heads = [
        "this project",
        "Hall 1992",
        "normal",
        "bootstrap, percentile",
        "bootstrap, studentized",
        "empirical Bernstein",
    ]
    for name, settings in SCENARIOS.items():
        began, simulation = time.process_time(), Simulation(**settings)
        random = np.random.default_rng(11)
        hits: dict[tuple[str, str], list[tuple[bool, float]]] = {}
        sizes, rewards, refused = [], [], 0
        for _ in range(trials):
            log = simulation.draw(random)
            user = log.pop("user")
            unit = user if simulation.per_user > 1 else None
            value = estimate_policy_value(**log, unit=unit, min_effective=ANY)
            sizes.append(value.effective_rows)
            rewards.append(log["reward"].sum())
            refused += value.effective_rows < 100
            count(hits, simulation, value, heads[0])
            if unit is not None:
                count(hits, simulation, estimate_policy_value(**log, min_effective=ANY), "rows as units")
            elif alternatives and simulation.rows <= 2_000:
                count_alternatives(hits, simulation, log, random)
        lines += [
            "",
            f"**{name}**: {simulation.rows:,} rows, true value {simulation.truth:.4f}, log {simulation.logged:.4f}, "
            f"median {np.median(rewards):.0f} rewards, median ESS {np.median(sizes):,.0f}, "
            f"largest possible weight {simulation.weight.max():,.0f}, refused {100 * refused / trials:.0f} %, "
            f"{time.process_time() - began:.0f} s of CPU",
            "",
        ]
        methods = [one for one in (*heads, "rows as units") if any(method == one for _, method in hits)]
        lines += ["| estimator | " + " | ".join(methods) + " |", "| --- |" + " --- |" * len(methods)]
        for estimator in dict.fromkeys(one for one, _ in hits):
            cells = [summarize(hits.get((estimator, method), []), simulation.truth) for method in methods]
            lines.append(f"| {LABELS.get(estimator, estimator)} | " + " | ".join(cells) + " |")
    return lines


def count(hits: dict[Any, list[tuple[bool, float]]], simulation: Simulation, value: Any, method: str) -> None:
    """Record whether the intervals of a log contain the truth."""
    for estimator in ("ips", "clipped_ips", "snips", "dr"):
        truth = simulation.clip_truth(value.clip) if estimator == "clipped_ips" else simulation.truth
        record(hits, (estimator, method), value.estimates[estimator].value, truth)
    record(hits, ("gain", method), value.estimates["snips"].gain, simulation.truth - simulation.logged)


def count_alternatives(
    hits: dict[Any, list[tuple[bool, float]]], simulation: Simulation, log: dict[str, Floats], random: Any
) -> None:
    """Record whether other intervals contain the truth."""
    w, r, ones = log["target"] / log["propensity"], log["reward"], np.ones(simulation.rows)
    clip, n = math.sqrt(simulation.rows), simulation.rows
    drawn = random.multinomial(n, np.full(n, 1 / n), size=200).astype(np.float64)
    ratios = {
        "ips": (w * r, ones, simulation.weight.max()),
        "clipped_ips": (np.minimum(w, clip) * r, ones, min(clip, simulation.weight.max())),
        "snips": (w * r, w, math.nan),
        "dr": (log["expected"] + w * (r - log["predicted"]), ones, simulation.weight.max()),
    }
    for estimator, (numerator, denominator, span) in ratios.items():
        truth = simulation.clip_truth(clip) if estimator == "clipped_ips" else simulation.truth
        for method, (low, high) in bound_otherwise(numerator, denominator, span, drawn).items():
            if math.isfinite(high):
                record(hits, (estimator, method), Interval(0.0, low, high), truth)


def record(hits: dict[Any, list[tuple[bool, float]]], key: tuple[str, str], one: Interval, truth: float) -> None:
    """Record one interval."""
    hits.setdefault(key, []).append((one.low <= truth <= one.high, one.high - one.low))


def summarize(own: list[tuple[bool, float]], truth: float) -> str:
    """Return coverage and width."""
    if not own:
        return ""
    inside, widths = zip(*own)
    return f"{100 * np.mean(inside):.1f} ({np.median(widths) / truth:.2f})"


def main() -> None:
    """Compare or simulate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--simulate", type=int, metavar="LOGS")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--freeze", type=Path)
    args = parser.parse_args()
    lines = []
    if args.data:
        lines += [
            "# Off-policy estimates beside those of the Open Bandit Pipeline",
            "",
            *compare_open_bandit(args.data),
        ]
    if args.simulate:
        lines += [
            *([""] if lines else []),
            "# Coverage of intervals of off-policy estimates",
            "",
            *simulate(args.simulate),
        ]
    print("\n".join(lines))
    if args.table:
        args.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if args.freeze:
        freeze(args.freeze)


if __name__ == "__main__":
    main()
