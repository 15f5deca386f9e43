"""Report of a traced request: how every item of the page got there, and what every stage dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longrec.pipeline.trace import StageTrace
from longrec.terminal_text import table


@dataclass(frozen=True)
class PipelineTrace:
    """What the stages of a pipeline did for one request.

    Attributes:
        pipeline: name of the pipeline.
        user: key of the user.
        at: timestamp of the request.
        stages: the stages, in order.
        new_user: True if a log does not contain the user.
    """

    pipeline: str
    user: Any
    at: str | int | None
    stages: Sequence[StageTrace]
    new_user: bool = False

    @property
    def page(self) -> list[Any]:
        """Keys of the items of the page."""
        keys: list[Any] = self.stages[-1].after.keys.tolist()
        return keys

    @property
    def seconds(self) -> float:
        """Duration of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def stage_keys(self) -> dict[str, list[Any]]:
        """Keys of the candidates after each stage, best first. Those of a source are its own items."""
        return {stage.name: stage.own.keys.tolist() for stage in self.stages}

    def count_items(self) -> int:
        """Return the number of items that any source retrieved."""
        return len({key for stage in self.stages for key in stage.after.keys.tolist()})

    def find(self, item: Any) -> list[dict[str, Any]]:
        """Return what each stage did with an item: its rank and score after the stage, or why it was dropped.

        An item that rules of the page left out may be explored behind them.

        The list ends with the stage that dropped the item for good.
        """
        steps, is_candidate = list[dict[str, Any]](), False
        for stage in self.stages:
            rank, score, reason = stage.find_rank(item), stage.find_score(item), stage.find_reason(item)
            if stage.is_source:
                result = "retrieved" if rank is not None else "not retrieved"
                is_candidate |= rank is not None
            elif not is_candidate and rank is None:
                break
            elif not is_candidate:
                result, is_candidate = "explored", True
            else:
                result = "kept" if rank is not None else "dropped"
                is_candidate = rank is not None
            steps.append({"stage": stage.name, "result": result, "rank": rank, "score": score, "reason": reason})
        return steps

    def format(self) -> str:
        """Return the stages and the items of the page as text of at most 100 columns."""
        new = ", a new user" if self.new_user else ""
        head = f"{self.pipeline} for user {self.user}{new} at {self.at}: "
        head += f"{len(self.page)} of {self.count_items():,} candidates in {1e3 * self.seconds:.1f} ms"
        rows = [[stage.name, len(stage.before), len(stage.after), _describe_drops(stage), 1e3 * stage.seconds]
                for stage in self.stages]  # fmt: skip
        stages = table(["stage", "in", "out", "dropped", "ms"], rows)
        shown = [stage for stage in self.stages if stage.name != "top"]
        headers = ["#", "item", "sources", *(stage.name for stage in shown)]
        sources = self.stages[-1].after.list_origins()
        items = [
            [number, str(key), source, *(_format_step(stage, key) for stage in shown)]
            for number, (key, source) in enumerate(zip(self.page, sources), 1)
        ]
        legend = "Each cell is the rank of the item after the stage and, in brackets, its score."
        return f"{head}\n\n{stages}\n\n{table(headers, items)}\n\n{legend}"

    def format_item(self, item: Any) -> str:
        """Return what each stage did with an item, as text."""
        steps = self.find(item)
        rows = [
            [one["stage"], one["result"] + (f": {one['reason']}" if one["reason"] else ""), one["rank"], one["score"]]
            for one in steps
        ]
        return f"{self._describe_end(item, steps)}\n\n{table(['stage', 'result', 'rank', 'score'], rows)}"

    def _describe_end(self, item: Any, steps: Sequence[Mapping[str, Any]]) -> str:
        if item in self.page:
            return f"item {item}: at position {self.page.index(item) + 1} of the page"
        if not any(step["result"] in ("retrieved", "kept") for step in steps):
            reasons = dict.fromkeys(step["reason"] for step in steps if step["reason"])
            why = f" ({', '.join(reasons)})" if reasons else ""
            return f"item {item}: no source retrieved it{why}"
        last = steps[-1]
        return f"item {item}: dropped by {last['stage']} ({last['reason']})"

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values."""
        return {
            "pipeline": self.pipeline,
            "user": self.user,
            "at": self.at,
            "new_user": self.new_user,
            "page": self.page,
            "stages": [
                {
                    "stage": stage.name,
                    "milliseconds": 1e3 * stage.seconds,
                    "late": stage.late,
                    "items": [
                        {"id": key, "rank": rank, "score": stage.find_score(key), "via": via}
                        for rank, (key, via) in enumerate(zip(stage.own.keys.tolist(), stage.own.list_origins()), 1)
                    ],
                    "dropped": {reason: list(keys) for reason, keys in stage.dropped.items()},
                }
                for stage in self.stages
            ],
        }

    def __repr__(self) -> str:
        return self.format()


def _describe_drops(stage: StageTrace) -> str:
    if stage.late:
        return "late: the order before it stays"
    return ", ".join(f"{len(keys):,} {reason}" for reason, keys in stage.dropped.items())


def _format_step(stage: StageTrace, key: Any) -> str:
    rank, score = stage.find_rank(key), stage.find_score(key)
    if rank is None:
        return ""
    return f"{rank}" if score is None or not np.isfinite(score) else f"{rank} ({score:.4g})"
