"""Golden requests of a bundle: their scores by a service, and how far these are from the exporter's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.bundle import Bundle
from longrec.exporting.golden import GoldenRequest
from longrec.serve.pipelines import RANK
from longrec.serve.responses import Answer

MAX_DRIFT = 1e-4
"""Largest difference from the golden scores on this machine, ten times the tolerance of export."""


class ReplayService(Protocol):
    """A service that answers golden requests, see ``service.py``."""

    @property
    def route(self) -> str:
        """The route of the requests."""
        ...

    def decode_and_answer(self, route: str, body: bytes) -> Answer:
        """Answer a JSON request."""
        ...


def check_scores(service: ReplayService, bundle: Bundle) -> float:
    """Replay the golden requests of a bundle and return the largest difference.

    Raises:
        BundleError: if scores differ by more than ``MAX_DRIFT``.
    """
    worst = 0.0
    for number, (golden, scores) in enumerate(zip(bundle.golden, score_golden(service, bundle.golden))):
        difference = compute_drift(golden, scores)
        if not difference <= MAX_DRIFT:
            raise BundleError(
                f"{bundle.path}: golden request {number}",
                f"scores differ by {difference:.2g} on this machine",
                f"at most {MAX_DRIFT:g}",
                "compare the versions of onnxruntime here and where it was exported",
            )
        worst = max(worst, difference)
    return worst


def compute_drift(golden: GoldenRequest, scores: NDArray[Any]) -> float:
    """Return the largest difference of scores: of probabilities, or as a share of the largest score of a retriever."""
    expected = np.array(golden.scores)
    if expected.shape != scores.shape:
        return float("inf")
    size = max(1.0, float(np.abs(expected).max(initial=0.0))) if golden.items else 1.0
    return float(np.abs(expected - scores).max(initial=0.0)) / size


def score_golden(service: ReplayService, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Return the service's score of every candidate (or expected item) of golden requests, in their order.

    An expected item that was not retrieved gets the lowest score that was, which is about its own if two items at the
    end have equal scores. If another number of items was retrieved, the scores of those are returned.
    """
    answers = []
    for one in golden:
        ranked = service.decode_and_answer(service.route, orjson.dumps(one.request)).pipeline_result.candidates
        scores = dict(zip(ranked.keys.tolist(), ranked.score.tolist()))
        if service.route == RANK:
            answers.append(np.array([scores[key] for key in one.request.get("candidates", range(len(scores)))]))
            continue
        same = len(scores) == len(one.items)
        lowest = min(scores.values(), default=0.0)
        answers.append(np.array([scores.get(key, lowest) for key in one.items] if same else list(scores.values())))
    return answers
