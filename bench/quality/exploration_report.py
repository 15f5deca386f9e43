"""Tables and sentences of ``exploration_simulation.py``, from finished runs.

Intervals are those of Student's t over seeds. Differences are paired by seed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Finished runs of each policy, in the order of seeds."""
HEAD = [
    "policy",
    "strength",
    "seeds",
    "regret",
    "less greedy",
    "less Thompson",
    "first quarter",
    "last quarter",
    "last quarter less greedy",
    "new, %",
    "AUC",
    "PCOC",
    "bucket B less A",
    "CPU, s",
]


def find_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of one value per seed with its 95 % interval."""
    mean, count = float(values.mean()), len(values)
    half = float(t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return mean, mean - half, mean + half


def show(interval: tuple[float, float, float], sign: str = "") -> str:
    """Return an interval in hundredths."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def subtract(runs: Runs, policy: str, other: str, key: str = "regret") -> NDArray[np.float64]:
    """Return a figure of one policy less that of another one, by the seeds that both finished."""
    own, theirs = ({one["seed"]: one[key] for one in runs.get(name, ()) if key in one} for name in (policy, other))
    return np.array([own[seed] - theirs[seed] for seed in sorted(own.keys() & theirs.keys())])


def write_table(runs: Runs) -> str:
    """Return the table of an environment, with regrets in clicks per 100 requests."""
    rows = []
    for policy, own in runs.items():
        if not own:
            continue
        mean = {key: float(np.mean([one[key] for one in own])) for key in ("new", "auc", "pcoc", "cpu")}
        quarters = np.mean([one["quarters"] for one in own], 0)
        pairs = [
            "" if policy == other or not runs.get(other) else show(find_interval(subtract(runs, policy, other)), "+")
            for other in ("greedy", "thompson")
        ]
        late = [{**one, "late": one["quarters"][-1]} for one in own]
        base = [{**one, "late": one["quarters"][-1]} for one in runs.get("greedy", ())]
        later = subtract({policy: late, "greedy": base}, policy, "greedy", "late")
        gain = subtract(runs, policy, "greedy, again", "bucket_greedy_value")
        rows.append(
            [
                policy,
                "" if own[0]["strength"] is None else f"{own[0]['strength']:g}",
                str(len(own)),
                show(find_interval(np.array([one["regret"] for one in own]))),
                *pairs,
                f"{100 * quarters[0]:.2f}",
                f"{100 * quarters[-1]:.2f}",
                show(find_interval(later), "+") if len(later) and policy != "greedy" else "",
                f"{100 * mean['new']:.1f}",
                f"{mean['auc']:.3f}",
                f"{mean['pcoc']:.3f}",
                show(find_interval(gain), "+") if len(gain) and gain.any() else "",
                f"{mean['cpu']:.1f}",
            ]
        )
    return machine.format_table(HEAD, rows)


def judge(runs: Runs, policy: str, other: str) -> str:
    """Return one sentence about the regret of a policy and that of another one."""
    difference = subtract(runs, policy, other)
    if len(difference) < 2:
        return f"{policy} and {other}: too few seeds."
    interval = find_interval(difference)
    verdict = "has no regret that differs from that of"
    if interval[2] < 0:
        verdict = "has less regret than"
    elif interval[1] > 0:
        verdict = "has more regret than"
    better = int((difference < 0).sum())
    return (
        f"{policy} {verdict} {other}: {show(interval, '+')} clicks per 100 requests, "
        f"less in {better} of {len(difference)} seeds."
    )


def write_tables(runs: Mapping[str, Runs]) -> str:
    """Return all tables, each with its sentences."""
    lines = []
    for environment, own in runs.items():
        done = [name for name in own if own[name]]
        lines += [f"## {environment}", "", write_table(own), ""]
        others = [name for name in ("thompson", "greedy", "epsilon-greedy", "random") if name in done]
        if "age-ts" in done:
            lines += [f"- {judge(own, 'age-ts', other)}" for other in others]
        lines.append("")
    return "\n".join(lines).strip()
