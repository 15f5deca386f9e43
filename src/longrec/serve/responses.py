"""Responses of a service and their JSON."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.explore import Exploration
from longrec.pipeline.stage import PipelineResult
from longrec.serve.request_json import Key


class Answer(Protocol):
    """Response to a request for a ranking or for recommendations."""

    @property
    def pipeline_result(self) -> PipelineResult:
        """The items, and the duration of each stage."""
        ...

    def json(self) -> bytes:
        """Return the response as JSON."""
        ...


@dataclass(frozen=True)
class RankResponse:
    """Response to a ranking request: candidates, best first.

    Attributes:
        pipeline_result: ranked candidates, and the duration of each stage.
        at: timestamp of the ranking, in the format of requests.
        new_user: True if the user is unknown (the log does not contain it).
        new_items: unknown items.
    """

    model: str
    user: Key | None
    at: str | int | None
    pipeline_result: PipelineResult
    new_user: bool
    new_items: Sequence[Key]

    def json(self) -> bytes:
        """Return the response of ``/rank``."""
        return orjson.dumps(
            {
                "model": self.model,
                "user": self.user,
                "at": self.at,
                "items": _list_items(self.pipeline_result.candidates),
                "unknown": {"user": self.new_user, "candidates": self.new_items},
            }
        )


@dataclass(frozen=True)
class RecommendResponse:
    """Response to a request for recommendations: items, best first.

    Attributes:
        pipeline_result: the items, the duration of each stage, and the stages that were late.
        at: timestamp of the request, in the format of requests.
        new_user: True if the user is unknown (a log does not contain it).
        timestamp: timestamp of the request: milliseconds UTC, or a step.
        request: identity of the request, the same in the log of shown items.
    """

    model: str
    user: Key
    at: str | int | None
    pipeline_result: PipelineResult
    new_user: bool
    timestamp: int = 0
    request: str = field(default_factory=lambda: secrets.token_hex(12))

    def json(self) -> bytes:
        """Return the response of ``/recommend``."""
        candidates = self.pipeline_result.candidates
        stages = [(name, scores.tolist()) for name, scores in candidates.scores.items()]
        items = _list_items(candidates)
        for number, item in enumerate(items):
            scores = ((name, values[number]) for name, values in stages)
            item["scores"] = {name: value for name, value in scores if value == value}  # without those of other sources
        return orjson.dumps(
            {
                **_describe_exploration(self.pipeline_result.exploration),
                "model": self.model,
                "request": self.request,
                "user": self.user,
                "at": self.at,
                "items": items,
                "unknown": {"user": self.new_user},
                "fallbacks": self.pipeline_result.fallbacks,
            }
        )


def _describe_exploration(exploration: Exploration | None) -> dict[str, Any]:
    if exploration is None:
        return {}
    return {"explore": {"bucket": exploration.bucket, "seed": exploration.seed, "item": exploration.item}}


def _list_items(ranked: Candidates) -> list[dict[str, Any]]:
    columns = zip(ranked.keys.tolist(), ranked.score.tolist(), ranked.list_origins())
    return [{"id": key, "score": score, "via": via} for key, score, via in columns]
