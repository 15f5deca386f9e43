"""Ranking service: runs the pipeline on a request and returns a response.

It fits nothing and imports no training code and no torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import BundleError, RequestError
from longrec.export.bundle import RANKER, Bundle
from longrec.export.golden import GoldenRequest
from longrec.export.raw_columns import format_request_time
from longrec.pipeline.stage import Pipeline, PipelineResult
from longrec.serve import open_inference
from longrec.serve.events import EventRecorder, EventResponse, PendingEvent
from longrec.serve.open_model import OpenModel
from longrec.serve.rank_stage import RankStage
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import Key, RankRequest, decode_event, decode_request, parse_request_time
from longrec.serve.settings import Settings
from longrec.serve.state import ServiceState
from longrec.serve.token_histories import TokenHistories

MAX_DRIFT = 1e-4
"""Largest difference from the golden scores on this machine, ten times the tolerance of export."""


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
    user: Key
    at: str | int | None
    pipeline_result: PipelineResult
    new_user: bool
    new_items: list[Key]

    def json(self) -> bytes:
        """Return the response of ``/rank``."""
        ranked = self.pipeline_result.candidates
        columns = zip(ranked.keys.tolist(), ranked.score.tolist(), ranked.list_origins())
        return orjson.dumps(
            {
                "model": self.model,
                "user": self.user,
                "at": self.at,
                "items": [{"id": key, "score": score, "via": via} for key, score, via in columns],
                "unknown": {"user": self.new_user, "candidates": self.new_items},
            }
        )


def read_clock() -> int:
    """Return the current time in milliseconds UTC."""
    return time.time_ns() // 1_000_000


class Service:
    """Ranking service of one bundle, for use by one thread.

    Args:
        bundle: folder of the bundle, or the opened bundle.
        settings: locations of live tokens and of recorded events. By default only the bundle is used.
        clock: function that returns milliseconds UTC.

    Raises:
        BundleError: if the bundle is not one of a ranker, or stores do not fit it.
        StoreError: if a store cannot be opened.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        settings: Settings | None = None,
        clock: Callable[[], int] = read_clock,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if self.bundle.manifest.kind != RANKER:
            message, do = (
                f"a bundle of an {self.bundle.manifest.kind}",
                "pass it with --events beside a ranker's bundle",
            )
            raise BundleError(str(self.bundle.path), message, "a bundle of a ranker", do)
        self.model, self.settings = self.bundle.manifest.model, settings or Settings()
        self._clock = clock
        self._state = None if self.settings.events is None else ServiceState(self.bundle, self.settings)
        try:
            self.served = OpenModel(self.bundle, self._open_encoder())
        except BaseException:
            if self._state is not None:
                self._state.close()
            raise
        self._events = None if self._state is None else EventRecorder(self._state, self.served.encoder, clock)
        self._pipeline = Pipeline([RankStage(self.served)])
        self._time = self.bundle.fitted.schema.time

    def _open_encoder(self) -> RequestEncoder:
        locations, state = self.settings.tokens, self._state
        if state is None:
            return RequestEncoder(self.bundle, TokenHistories(self.bundle, locations))
        tokens = TokenHistories(self.bundle, {**locations, **state.token_locations}, state.stores)
        return RequestEncoder(self.bundle, tokens, state.live)

    @property
    def exclusive_folders(self) -> list[str]:
        """Folders it writes to that only one process may open."""
        return [] if self._state is None else self._state.exclusive_folders

    def rank(self, request: RankRequest) -> RankResponse:
        """Rank the candidates of a request.

        Raises:
            RequestError: if the request is invalid. Then no candidate is scored.
            StoreError: if a store does not respond.
        """
        at = parse_request_time(request.at, self._time, self._clock())
        query = request.build_query(at)
        result = self._pipeline(request.build_candidates(), query)
        unknown = query.unknown
        formatted = format_request_time(self.bundle.fitted, at)
        return RankResponse(self.model, request.user, formatted, result, unknown.user, unknown.items)

    def record(self, body: bytes) -> EventResponse:
        """Record an event from JSON durably.

        Raises:
            RequestError, StoreError: as ``prepare`` and ``PendingEvent.commit``.
        """
        return self.prepare(body).commit()

    def prepare(self, body: bytes) -> PendingEvent:
        """Validate and encode an event from JSON. It must be committed before the next is prepared.

        Raises:
            RequestError: if the event is invalid, or the service has no source model.
            StoreError: if a store does not respond.
        """
        if self._events is None:
            do = "start the server with --events SOURCE.bundle"
            raise RequestError("/events", "no source", "a server with the source of its tokens", do, 404)
        return self._events.prepare(decode_event(body))

    def answer(self, body: bytes) -> bytes:
        """Rank the candidates of a JSON request and return JSON, as ``POST /rank`` does."""
        return self.rank(decode_request(body)).json()

    def close(self) -> None:
        """Close all stores."""
        self.served.close()
        if self._state is not None:
            self._state.close()

    def infer(self, body: bytes) -> bytes:
        """Run the ONNX model on the tensors of a JSON request, as ``POST /v2/models/{name}/infer`` does.

        Raises:
            RequestError: if the tensors do not fit the ONNX model.
        """
        manifest = self.bundle.manifest
        identity, inputs = open_inference.decode_infer_request(body, manifest.inputs)
        scores = self.served.programs["score"].run(inputs)
        return open_inference.encode_infer_response(self.model, manifest.version, identity, scores)

    def metadata(self) -> dict[str, Any]:
        """Return name, inputs and outputs of the model in the format of the Open Inference Protocol."""
        return open_inference.build_metadata(self.model, self.bundle.manifest.version, self.bundle.manifest.inputs)

    def health(self) -> dict[str, Any]:
        """Return facts about the served bundle."""
        manifest = self.bundle.manifest
        return {
            "status": "ok",
            "model": self.model,
            "version": manifest.version,
            "created": manifest.created,
            **manifest.counts,
        }

    def check(self) -> float:
        """Replay the golden requests to warm up and to verify that this machine scores like the exporter.

        Only the bundle is used, because live stores contain later data.

        Raises:
            BundleError: if scores differ by more than ``MAX_DRIFT``.
        """
        if self.settings != Settings():
            self.answer(orjson.dumps(self.example()))
            with contextlib.closing(Service(self.bundle)) as alone:
                return alone.check()
        worst = 0.0
        for number, (golden, scores) in enumerate(zip(self.bundle.golden, score_golden(self, self.bundle.golden))):
            difference = float(np.abs(np.array(golden.scores) - scores).max())
            if not difference <= MAX_DRIFT:
                raise BundleError(
                    f"{self.bundle.path}: golden request {number}",
                    f"scores differ by {difference:.2g} on this machine",
                    f"at most {MAX_DRIFT:g}",
                    "compare the versions of onnxruntime here and where it was exported",
                )
            worst = max(worst, difference)
        return worst

    def example(self) -> dict[str, Any]:
        """Return a valid request: the first golden one."""
        return dict(self.bundle.golden[0].request)


def score_golden(service: Service, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Return the service's score of every candidate of golden requests, in the order of the candidates."""
    answers = []
    for one in golden:
        ranked = service.rank(decode_request(orjson.dumps(one.request))).pipeline_result.candidates
        scores = dict(zip(ranked.keys.tolist(), ranked.score.tolist()))
        answers.append(np.array([scores[key] for key in one.request["candidates"]]))
    return answers


def replay(folder: Path, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Score golden requests with a bundle: the ``replay`` function of export."""
    with contextlib.closing(Service(folder)) as service:
        return score_golden(service, golden)
