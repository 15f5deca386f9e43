"""Regret of the explorers where the click probability is known: AGE, Thompson sampling, upper bounds and others.

    python bench/quality/exploration_simulation.py --data KUAIRAND_FOLDER [--environments drifting kuairand ...]
        [--policies thompson age-ts ...] [--seeds 10]
    python bench/quality/exploration_simulation.py --data KUAIRAND_FOLDER --table [FILE]

Policies start with untrained nets and learn from what they show, see ``exploration_policies.py``, in environments of
``exploration_environments.py``. The strength of each is chosen among three on seed 100, which is not reported. A
finished run is not repeated. Reported per policy, over seeds:

- regret per request: the largest true probability among the candidates, less that of the shown one;
- share of the shown items that the policy had shown fewer than ``NEW`` times before the round;
- AUC and predicted over true clicks of the final net, on every candidate of requests after the served ones, which are
  drawn without any policy;
- fair buckets: net B learns from the even requests of the greedy policy and the odd ones of this policy, net A from the
  same even ones and the odd ones of a second greedy policy, whose net started from other weights. Neither explores.
  Reported is the true probability of what B shows on the requests after the served ones, less that of what A shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exploration_environments import CANDIDATES, ROUND, Environment, Ints, draw
from exploration_policies import POLICIES, Learner, replay, serve
from exploration_report import write_tables
from numpy.typing import NDArray

from longrec.metrics import auc

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

WORK = machine.CACHE / "work" / "exploration"
SERVED, HELD_OUT = 100_000, 5_000
TUNING_SEED, TUNING_SERVED = 100, 40_000
NEW = 30
FIRST = ("greedy", "greedy, again", "random", "epsilon-greedy", "thompson", "age-ts")
"""Policies that run first for all seeds. They decide the question of the study."""
LAST = ("ensemble-ts", "age-ts, no gate")
"""Policies that run last, because they cost the most or answer another question."""
GROUPS = (FIRST, tuple(name for name in POLICIES if name not in FIRST + LAST), LAST)
ORDER = tuple(name for group in GROUPS for name in group)


def count_new(environment: Environment, shown: Ints) -> float:
    """Return the share of shown items with fewer than ``NEW`` impressions before their round."""
    items = environment.candidates[np.arange(len(shown)), shown]
    counts, new = np.zeros(environment.candidates.max() + 1, np.int64), 0
    for start in range(0, len(items), ROUND):
        own = items[start : start + ROUND]
        new += int((counts[own] < NEW).sum())
        counts += np.bincount(own, minlength=len(counts))
    return new / len(items)


def measure_regret(environment: Environment, shown: Ints) -> NDArray[np.float64]:
    """Return the expected regret of each served request, ``[T]``."""
    rows = np.arange(len(shown))
    return environment.best[rows].astype(np.float64) - environment.truth[rows, shown]


def evaluate_net(learner: Learner) -> dict[str, float]:
    """Return the quality of the nets on the requests after the served ones, without exploration."""
    environment = learner.environment
    held = slice(environment.served, len(environment.truth))
    p, truth = learner.predict(held), environment.truth[held]
    clicks = (np.random.default_rng([learner.seed, 5]).random(truth.shape) < truth).astype(np.float32)
    return {
        "auc": auc(clicks.ravel(), p.ravel()),
        "pcoc": float(p.mean() / truth.mean()),
        "greedy_value": float(truth[np.arange(len(p)), p.argmax(1)].mean()),
    }


def run(environment: Environment, name: str, strength: float | None, seed: int) -> tuple[dict[str, Any], Ints]:
    """Serve all requests by one policy, and return its figures and what it showed."""
    began = time.process_time()
    learner = Learner(environment, POLICIES[name], strength, seed)
    shown = serve(learner)
    cpu = time.process_time() - began
    regret = measure_regret(environment, shown)
    figures = {
        "policy": name,
        "strength": strength,
        "seed": seed,
        "cpu": cpu,
        "regret": float(regret.mean()),
        "quarters": [float(quarter.mean()) for quarter in np.array_split(regret, 4)],
        "new": count_new(environment, shown),
        **evaluate_net(learner),
    }
    return figures, shown


def measure_buckets(environment: Environment, greedy: Ints, shown: Ints, seed: int) -> dict[str, float]:
    """Return the quality of net B, which learns from half of what greedy showed and half of what the policy showed."""
    learner = Learner(environment, POLICIES["greedy"], None, seed)
    replay(learner, np.where(np.arange(len(shown)) % 2 == 0, greedy, shown))
    return {f"bucket_{key}": value for key, value in evaluate_net(learner).items()}


class Study:
    """Finished runs, and what is left to do."""

    def __init__(self, data: Path | None, served: int = SERVED, work: Path = WORK) -> None:
        self.data, self.served, self.work = data, served, work
        self._environments: dict[tuple[Any, ...], Environment] = {}

    def open_environment(self, name: str, seed: int, served: int) -> Environment:
        """Return the environment of a seed. The last one is kept in memory."""
        key = name, seed, served
        if key not in self._environments:
            self._environments = {key: draw(name, seed, served, HELD_OUT, self.data)}
        return self._environments[key]

    def find(self, environment: str, policy: str, strength: float | None, seed: int, served: int) -> Path:
        """Return the file of a run, without its suffix."""
        value = "" if strength is None else f"={strength:g}"
        folder, name = (text.replace(", ", "-").replace(" ", "-") for text in (environment, policy))
        return self.work / folder / f"{served}" / f"{name}{value}_{seed}"

    def finish(self, environment: str, policy: str, strength: float | None, seed: int, served: int) -> dict[str, Any]:
        """Return the figures of a run, which runs unless it is finished."""
        path = self.find(environment, policy, strength, seed, served)
        text, stored = Path(f"{path}.json"), Path(f"{path}.npy")
        if not text.exists():
            own = self.open_environment(environment, seed, served)
            figures, shown = run(own, policy, strength, seed)
            if seed != TUNING_SEED and policy != "greedy":
                greedy = Path(f"{self.find(environment, 'greedy', None, seed, served)}.npy")
                if greedy.exists():
                    figures |= measure_buckets(own, np.load(greedy).astype(np.int64), shown, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(stored, shown.astype(np.uint8))
            text.write_text(json.dumps(figures))
            line = f"{environment} {path.name} regret {figures['regret']:.4f}, {figures['cpu']:.1f} s of CPU"
            print(f"{time.strftime('%H:%M:%S', time.gmtime())} {line}", flush=True)
        figures = json.loads(text.read_text())
        assert isinstance(figures, dict)
        return figures

    def choose_strength(self, environment: str, policy: str) -> float | None:
        """Return the strength with the least regret on the tuning seed."""
        tried = {
            strength: self.finish(environment, policy, strength, TUNING_SEED, TUNING_SERVED)["regret"]
            for strength in POLICIES[policy].strengths
        }
        return min(tried, key=lambda strength: tried[strength]) if tried else None

    def collect(self, environment: str, policy: str, seeds: int) -> list[dict[str, Any]]:
        """Return the finished runs of a policy with the chosen strength, by seed."""
        tried = [self.find(environment, policy, s, TUNING_SEED, TUNING_SERVED) for s in POLICIES[policy].strengths]
        if not all(Path(f"{path}.json").exists() for path in tried):
            return []
        strength = self.choose_strength(environment, policy)
        paths = [Path(f"{self.find(environment, policy, strength, seed, self.served)}.json") for seed in range(seeds)]
        return [json.loads(path.read_text()) for path in paths if path.exists()]


def run_study(study: Study, environments: list[str], policies: list[str], seeds: int) -> None:
    """Tune and run group by group, each seed by seed."""
    began = time.monotonic()
    for group in GROUPS:
        own = [name for name in group if name in policies]
        strengths = {(e, name): study.choose_strength(e, name) for e in environments for name in own}
        jobs = [(e, name, seed) for seed in range(seeds) for e in environments for name in own]
        for number, (environment, name, seed) in enumerate(jobs):
            study.finish(environment, name, strengths[environment, name], seed, study.served)
            if (number + 1) % len(own) == 0:
                print(f"{number + 1} of {len(jobs)} runs, {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def main() -> None:
    """Run what is left, or write the table of the finished runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of KuaiRand-Pure, 14 days")
    parser.add_argument("--environments", nargs="*", default=list(CANDIDATES), choices=CANDIDATES)
    parser.add_argument("--policies", nargs="*", default=list(ORDER), choices=ORDER)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--served", type=int, default=SERVED, help="requests that each policy serves")
    parser.add_argument("--table", nargs="?", type=Path, const=Path("-"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(args.data, args.served)
    if args.table is None:
        run_study(study, args.environments, args.policies, args.seeds)
        return
    runs = {e: {name: study.collect(e, name, args.seeds) for name in ORDER} for e in args.environments}
    text = write_tables(runs)
    print(text)
    if args.table != Path("-"):
        args.table.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
