"""Service: runs a pipeline on a request and returns a response.

It fits nothing and imports no training code and no torch. Everything that depends on a model is in the stages.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import BundleError, RequestError
from longrec.exporting.bundle import ENCODER, RETRIEVER, Bundle
from longrec.exporting.golden import GoldenRequest
from longrec.features.raw_columns import format_request_time
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Pipeline
from longrec.serve.events import EventRecorder, EventResponse, PendingEvent
from longrec.serve.open_model import OpenModel
from longrec.serve.pipelines import RANK, RECOMMEND, build_pipelines, open_recall
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import (
    RankRequest,
    RecommendRequest,
    decode_event,
    decode_recommend_request,
    decode_request,
    parse_request_time,
)
from longrec.serve.responses import RankResponse, RecommendResponse
from longrec.serve.served_programs import ServedPrograms
from longrec.serve.settings import Settings
from longrec.serve.state import ServiceState
from longrec.serve.token_histories import TokenHistories

MAX_DRIFT = 1e-4
"""Largest difference from the golden scores on this machine, ten times the tolerance of export."""


def read_clock() -> int:
    """Return the current time in milliseconds UTC."""
    return time.time_ns() // 1_000_000


class Service:
    """Service of one bundle, or of a ranker and a retriever, for use by one thread.

    Args:
        bundle: folder of the bundle of a ranker or a retriever, or the opened bundle.
        settings: locations of live tokens, of recorded events and of a retriever. By default only the bundle is used.
        clock: function that returns milliseconds UTC.

    Attributes:
        served: the opened bundle.
        recall: the opened bundle of the retriever of ``Settings.recall``.
        programs: programs of the opened bundles.

    Raises:
        BundleError: if the bundle is one of an encoder, or stores or the retriever do not fit it.
        StoreError: if a store cannot be opened.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        settings: Settings | None = None,
        clock: Callable[[], int] = read_clock,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if self.bundle.manifest.kind == ENCODER:
            message, do = (
                f"a bundle of an {self.bundle.manifest.kind}",
                "pass it with --events beside a ranker's bundle",
            )
            raise BundleError(str(self.bundle.path), message, "a bundle of a ranker", do)
        self.model, self.settings = self.bundle.manifest.model, settings or Settings()
        self._clock = clock
        self._closing = contextlib.ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self._time = self.bundle.fitted.schema.time

    def _open(self) -> None:
        self._state: ServiceState | None = None
        self._events: EventRecorder | None = None
        if self.settings.events is not None:
            self._state = ServiceState(self.bundle, self.settings)
            self._closing.callback(self._state.close)
        self.served = OpenModel(self.bundle, self._open_encoder(), pristine=self.settings.pristine)
        self._closing.callback(self.served.close)
        if self._state is not None:
            self._events = EventRecorder(self._state, self.served.encoder, self._clock)
        self.recall: OpenModel | None = None
        if self.settings.recall is not None:
            self.recall = open_recall(self.served, self.settings.recall)
            self._closing.callback(self.recall.close)
        self.pipelines = build_pipelines(self.served, self.recall)
        models = [model for model in (self.served, self.recall) if model is not None]
        self.programs = ServedPrograms(models)
        self._columns = frozenset(column for model in models for column in model.encoder.context)

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

    @property
    def route(self) -> str:
        """The route of its golden requests: ``/rank`` of a ranker, ``/recommend`` of a retriever."""
        return RECOMMEND if self.bundle.manifest.kind == RETRIEVER else RANK

    def get_pipeline(self, route: str) -> Pipeline:
        """Return the pipeline of a route.

        Raises:
            RequestError: 404 if the bundle has no such pipeline.
        """
        if route not in self.pipelines:
            do = "post to /recommend, or serve the bundle of a ranker"
            if route == RECOMMEND:
                do = "post candidates to /rank, or start the server with --recall RETRIEVER.bundle"
            kind = "ranker" if route == RANK else "retriever"
            raise RequestError(route, f"a bundle of a {self.bundle.manifest.kind}", f"a bundle of a {kind}", do, 404)
        return self.pipelines[route]

    def rank(self, request: RankRequest) -> RankResponse:
        """Rank the candidates of a request.

        Raises:
            RequestError: if the request is invalid. Then no candidate is scored.
            StoreError: if a store does not respond.
        """
        pipeline = self.get_pipeline(RANK)
        at = parse_request_time(request.at, self._time, self._clock())
        query = request.build_query(at)
        result = pipeline(request.build_candidates(), query)
        unknown = query.unknown
        formatted = format_request_time(self.bundle.fitted, at)
        return RankResponse(self.model, request.user, formatted, result, unknown.user, unknown.items)

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Return the items with the highest scores for a request.

        Raises:
            RequestError: if the request is invalid, or the service has no retriever.
            StoreError: if a store does not respond.
        """
        pipeline = self.get_pipeline(RECOMMEND)
        at = parse_request_time(request.at, self._time, self._clock())
        query = request.build_query(at, self._columns)
        result = pipeline(Candidates.of([], "request"), query)
        formatted = format_request_time(self.bundle.fitted, at)
        return RecommendResponse(self.model, request.user, formatted, result, query.unknown.user)

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

    def decode_and_answer(self, route: str, body: bytes) -> RankResponse | RecommendResponse:
        """Answer a JSON request to ``/rank`` or ``/recommend``."""
        self.get_pipeline(route)
        if route == RANK:
            return self.rank(decode_request(body, self.bundle.fitted.schema))
        return self.recommend(decode_recommend_request(body))

    def answer(self, body: bytes, route: str = RANK) -> bytes:
        """Answer a JSON request with JSON, as ``POST`` to the route does."""
        return self.decode_and_answer(route, body).json()

    def close(self) -> None:
        """Close all stores."""
        self._closing.close()

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

        Only the bundles are used, because live stores and catalogs contain later data.

        Raises:
            BundleError: if scores differ by more than ``MAX_DRIFT``.
        """
        alone = msgspec.structs.replace(self.settings, pristine=False) == Settings()
        if not (alone and self.served.catalog.is_as_exported):
            self.answer(orjson.dumps(self.example()), self.route)
            if self.recall is not None:
                self.answer(orjson.dumps(self._build_recall_example(self.recall)), RECOMMEND)
            with contextlib.ExitStack() as closing:
                models = [model for model in (self.served, self.recall) if model is not None]
                return max(
                    closing.enter_context(contextlib.closing(Service(m.bundle, Settings(pristine=True)))).check()
                    for m in models
                )
        worst = 0.0
        for number, (golden, scores) in enumerate(zip(self.bundle.golden, score_golden(self, self.bundle.golden))):
            difference = compute_drift(golden, scores)
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
        """Return a valid request to ``route``: the first golden one."""
        return dict(self.bundle.golden[0].request)

    def _build_recall_example(self, recall: OpenModel) -> dict[str, Any]:
        example = dict(recall.bundle.golden[0].request)
        context = {**self.example()["context"], **example["context"]}
        return {**example, "context": context, "allow_unknown": True}


def compute_drift(golden: GoldenRequest, scores: NDArray[Any]) -> float:
    """Return the largest difference of scores: of probabilities, or as a share of the largest score of a retriever."""
    expected = np.array(golden.scores)
    if expected.shape != scores.shape:
        return float("inf")
    size = max(1.0, float(np.abs(expected).max(initial=0.0))) if golden.items else 1.0
    return float(np.abs(expected - scores).max(initial=0.0)) / size


def score_golden(service: Service, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
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


def replay(folder: Path, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Score golden requests with a bundle: the ``replay`` function of export."""
    with contextlib.closing(Service(folder, Settings(pristine=True))) as service:
        return score_golden(service, golden)
