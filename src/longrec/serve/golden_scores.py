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
from longrec.serve.exploration_scorer import ExplorationScorer
from longrec.serve.open_model import OpenModel
from longrec.serve.pipelines import RANK
from longrec.serve.request_json import decode_request
from longrec.serve.request_time import parse_request_time
from longrec.serve.responses import Answer

MAX_DRIFT = 1e-4
"""Largest difference from the golden scores on this machine, ten times the tolerance of export."""


class ReplayService(Protocol):
    """A service that answers golden requests, see ``service.py``."""

    @property
    def route(self) -> str:
        """The route of the requests."""
        ...

    @property
    def served(self) -> OpenModel:
        """The opened bundle."""
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
    expected = golden.expected
    if expected.shape != scores.shape:
        return float("inf")
    size = max(1.0, float(np.abs(expected).max(initial=0.0))) if golden.items else 1.0
    return float(np.abs(expected - scores).max(initial=0.0)) / size


def score_golden(service: ReplayService, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Return the service's score of every candidate (or expected item) of golden requests, in their order.

    Those of a request with a seed are followed by the exploration scores of its candidates.

    An expected item that was not retrieved gets the lowest score that was, which is about its own if two items at the
    end have equal scores. If another number of items was retrieved, the scores of those are returned.
    """
    answers = []
    for one in golden:
        ranked = service.decode_and_answer(service.route, orjson.dumps(one.request)).pipeline_result.candidates
        scores = dict(zip(ranked.keys.tolist(), ranked.score.tolist()))
        if service.route == RANK:
            own = [scores[key] for key in one.request.get("candidates", range(len(scores)))]
            explored = [] if one.seed is None else _explore(service.served, one.request, one.seed).tolist()
            answers.append(np.array([*own, *explored]))
            continue
        same = len(scores) == len(one.items)
        lowest = min(scores.values(), default=0.0)
        answers.append(np.array([scores.get(key, lowest) for key in one.items] if same else list(scores.values())))
    return answers


def _explore(model: OpenModel, content: dict[str, Any], seed: int) -> NDArray[np.float32]:
    """Return the exploration scores of the candidates of a request, in their order."""
    schema = model.bundle.fitted.schema
    request = decode_request(orjson.dumps(content), schema)
    query = request.build_query(parse_request_time(request.at, schema.time, 0))
    return ExplorationScorer(model)(request.build_candidates(), query, seed)
