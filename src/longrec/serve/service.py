"""Service: runs a pipeline on a request and returns a response.

It fits nothing and imports no training code and no torch. Everything that depends on a model is in the stages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import BundleError, DataError, RequestError
from longrec.exporting.bundle import RETRIEVER, Bundle
from longrec.exporting.golden import GoldenRequest
from longrec.features.raw_columns import format_request_time
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.config import cut_pipeline
from longrec.pipeline.recent_event import RecentEvent
from longrec.pipeline.stage import Query, Stages
from longrec.pipeline.trace import Trace
from longrec.serve.events import EventRecorder, EventResponse, PendingEvent
from longrec.serve.golden_scores import check_scores, score_golden
from longrec.serve.history_request import HISTORY, decode_history_request
from longrec.serve.history_view import view_in_steps
from longrec.serve.impression_log import ImpressionLog
from longrec.serve.live_catalog import ChangeSteps, change_items_in_steps, finish_changes
from longrec.serve.opened_models import open_models
from longrec.serve.pipelines import (
    RANK,
    RECOMMEND,
    OpenedPipeline,
    read_served_config,
)
from longrec.serve.request_json import (
    RankRequest,
    RecommendRequest,
    decode_event,
    decode_items,
    decode_recommend_request,
    decode_request,
)
from longrec.serve.request_time import parse_request_time, read_clock
from longrec.serve.request_user import RequestUserReader
from longrec.serve.responses import Answer, RankResponse, RecommendResponse
from longrec.serve.served_programs import ServedPrograms
from longrec.serve.settings import Settings
from longrec.serve.state import ServiceState
from longrec.serve.stores import Reading, finish
from longrec.store.remote_store import RemoteStore


class Service:
    """Service of one bundle, or of a pipeline, for use by one thread.

    Args:
        target: folder of the bundle of a ranker or a retriever, the opened bundle, or the YAML file of a pipeline.
        settings: locations of live tokens, of recorded events and of a retriever. By default only the bundle is used.
        clock: function that returns milliseconds UTC.
        keep_log: write the items that a pipeline shows to its log.
        before: ranker of a pipeline before which it ends, ``rank`` or ``prerank``. None: all of its stages.

    Attributes:
        path: the folder, or the file.
        bundle: the opened bundle: of a pipeline the ranker's, or that of its first source.
        pipeline: the opened pipeline. None for a bundle that is served alone.
        models: the opened bundles, each once.
        programs: programs of the opened bundles.

    Raises:
        ConfigError: if a pipeline has faults, or its bundles do not fit together.
        BundleError: if the bundle is one of an encoder, or stores do not fit it.
        StoreError: if a store cannot be opened.
    """

    def __init__(
        self,
        target: Bundle | str | Path,
        settings: Settings | None = None,
        clock: Callable[[], int] = read_clock,
        keep_log: bool = True,
        before: str | None = None,
    ) -> None:
        self.settings, self._clock = settings or Settings(), clock
        self.path = target.path if isinstance(target, Bundle) else Path(target)
        self.pipeline: OpenedPipeline | None = None
        self._state: ServiceState | None = None
        self._events: EventRecorder | None = None
        self._log: ImpressionLog | None = None
        self._closing = contextlib.ExitStack()
        try:
            config, folder = read_served_config(self.path, self.settings.recall, isinstance(target, Bundle))
            config = config if config is None or before is None else cut_pipeline(config, before)
            own = target if isinstance(target, Bundle) else self.path
            opened = open_models(own, config, folder, self.path, self.settings, self._closing)
            self.served, self.models, self.pipelines = opened.served, opened.models, opened.routes
            self.pipeline, self._state, self.bundle = opened.pipeline, opened.state, opened.served.bundle
            if self._state is not None:
                encoders = {model.bundle.digest: model.encoder for model in [self.served, *self.models]}
                catalogs = [(model.encoder, model.catalog) for model in self.models]
                self._events = EventRecorder(self._state, self.served.encoder, encoders, catalogs, clock)
            if self.pipeline is not None and keep_log:
                self._log = ImpressionLog.open(self.pipeline, folder)
                self._closing.callback(self._log.close)
        except BaseException:
            self.close()
            raise
        is_named = config is not None and self.settings.recall is None
        self.model = config.name if config is not None and is_named else self.bundle.manifest.model
        self.programs = ServedPrograms(self.models)
        self._columns = frozenset(column for model in self.models for column in model.encoder.context)
        self._time = self.bundle.fitted.schema.time
        source = None if self._state is None or self._state.source is None else self._state.source.encoder
        self._recent = RequestUserReader([(model.encoder, model.catalog) for model in self.models], source, self._time)

    @property
    def exclusive_folders(self) -> list[str]:
        """Folders it writes to that only one process may open."""
        return [] if self._state is None else self._state.exclusive_folders

    @property
    def remote_stores(self) -> list[RemoteStore]:
        """Stores on servers that it reads or writes, each once."""
        read = [store for model in self.models for store in model.encoder.remote_stores]
        return list(dict.fromkeys([*read, *([] if self._state is None else self._state.remote_stores)]))

    @property
    def recorder(self) -> EventRecorder:
        """The recorder of events.

        Raises:
            RequestError: if the service records none.
        """
        if self._events is None:
            problem, do = "events are not recorded", "start the server with --events"
            raise RequestError("/events", problem, "a server that records events", do, 404)
        return self._events

    @property
    def route(self) -> str:
        """The route of its example: ``/rank`` of a ranker, ``/recommend`` of a retriever or a pipeline."""
        if self.pipeline is not None and self.settings.recall is None:
            return RECOMMEND
        return RECOMMEND if self.bundle.manifest.kind == RETRIEVER else RANK

    def list_stages(self) -> list[str]:
        """Return the names of the stages of all routes, each once."""
        return list(dict.fromkeys(stage.name for stages in self.pipelines.values() for stage in stages.stages))

    def get_stages(self, route: str) -> Stages:
        """Return the stages of a route.

        Raises:
            RequestError: 404 if the bundle has no such route.
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
        return finish(self._rank(request))

    def _rank(self, request: RankRequest) -> Iterator[RankResponse | Reading | None]:
        """Rank the candidates of a request. Yields None between slices of the work, and in the end the response."""
        stages = self.get_stages(RANK)
        self.refresh_catalogs()
        at = parse_request_time(request.at, self._time, self._clock())
        query = request.build_query(at, self._read_recent(request, at))
        yield from self._read_remote(query)
        for result in stages.run_in_slices(request.build_candidates(), query):
            if result is None:
                yield None
                continue
            unknown, formatted = query.unknown, format_request_time(self.bundle.fitted, at)
            yield RankResponse(self.model, request.user, formatted, result, unknown.user, unknown.items)

    def _read_recent(self, request: RankRequest | RecommendRequest, at: int) -> tuple[RecentEvent, ...]:
        """Validate what a request says about its user, and return its recent events."""
        self._recent.check_user_context(request.user_context)
        return self._recent.read(request.recent, at, request.allow_unknown)

    def _read_remote(self, query: Query, seen: bool = False) -> Iterator[Reading]:
        """Yield the reading of the stores on servers, if there are any. The query remembers the results."""
        encoders = [model.encoder for model in self.models if model.encoder.remote_stores]

        def read() -> None:
            for encoder in encoders:
                query.encode(encoder)
                if seen:
                    encoder.read_seen_events(query)

        if encoders:
            yield Reading(read)

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Return the best items for a request, and log what is shown.

        Raises:
            RequestError: if the request is invalid, or the service has no retriever.
            StoreError: if a store does not respond.
        """
        return finish(self._recommend(request))

    def trace(self, request: RecommendRequest, reasons: bool = True) -> tuple[RecommendResponse, Trace]:
        """Return the answer to a request and what every stage kept and dropped. Nothing is logged.

        Args:
            reasons: also find out why items were dropped.

        Raises:
            RequestError, StoreError: as ``recommend``.
        """
        trace = Trace(reasons)
        return finish(self._recommend(request, trace, logs=False)), trace

    def _recommend(
        self, request: RecommendRequest, trace: Trace | None = None, logs: bool = True
    ) -> Iterator[RecommendResponse | Reading]:
        stages = self.get_stages(RECOMMEND)
        self.refresh_catalogs()
        at = parse_request_time(request.at, self._time, self._clock())
        seen = self.pipeline is None or self.pipeline.config.filter.seen
        query = request.build_query(at, seen, self._columns, trace, self._read_recent(request, at))
        yield from self._read_remote(query, seen=True)
        result = stages(Candidates.of([], "request"), query)
        formatted = format_request_time(self.bundle.fitted, at)
        answer = RecommendResponse(self.model, request.user, formatted, result, query.unknown.user, at)
        if logs and self._log is not None:
            self._log.write(answer)
        yield answer

    def refresh_catalogs(self) -> None:
        """Read the changes of items that other processes have made, so that all stages have the same items."""
        for model in self.models:
            model.catalog.refresh()

    def change_items(self, body: bytes) -> dict[str, int]:
        """Add, withdraw and change items of all bundles durably, from JSON: ``{"items": [raw columns, ...]}``.

        Raises:
            RequestError: if the body is no such JSON, or a change does not fit a bundle. Then none is applied.
            StoreError: if another process changes items for long.
        """
        return finish_changes(self.change_items_in_steps(body))

    def change_items_in_steps(self, body: bytes) -> ChangeSteps:
        """Yield functions that wait while items are changed, and the result, see ``live_catalog.py``."""
        try:
            yield from change_items_in_steps([model.catalog for model in self.models], decode_items(body))
        except DataError as error:
            raise RequestError(error.where, error.found, error.expected, error.do, 422) from None
        except BundleError as error:
            raise RequestError("/items", error.found, error.expected, error.do, 422) from None

    def record(self, body: bytes) -> EventResponse:
        """Record an event from JSON durably.

        Raises:
            RequestError, StoreError: as ``prepare`` and ``PendingEvent.commit``.
        """
        return self.prepare(body).commit()

    def prepare(self, body: bytes) -> PendingEvent:
        """Validate and encode an event from JSON. It must be committed before the next is prepared.

        Raises:
            RequestError: if the event is invalid, or the service records none.
            StoreError: if a store does not respond.
        """
        self.refresh_catalogs()
        return self.recorder.prepare(decode_event(body))

    def decode_and_answer(self, route: str, body: bytes) -> Answer:
        """Answer a JSON request to ``/rank`` or ``/recommend``."""
        return finish(self.answer_in_steps(route, body))

    def answer_in_steps(self, route: str, body: bytes) -> Iterator[Answer | Reading | None]:
        """Answer a JSON request: yield ``Reading`` to wait for a server, None between slices, in the end the answer."""
        self.get_stages(route)
        if route == RANK:
            yield from self._rank(decode_request(body, self.bundle.fitted.schema))
        else:
            yield from self._recommend(decode_recommend_request(body))

    def answer(self, body: bytes, route: str = RANK) -> bytes:
        """Answer a JSON request with JSON, as ``POST`` to the route does."""
        return self.decode_and_answer(route, body).json()

    def read_history_in_steps(self, body: bytes) -> Iterator[Reading | bytes]:
        """Answer a JSON request for the events that a score reads of a user: yield ``Reading``, in the end the JSON.

        Raises:
            RequestError: 404 if the bundle stores no histories of users, or the user is unknown and not allowed. 400 or
                422 if the request is invalid.
        """
        schema = self.bundle.fitted.schema
        if schema.user is None or schema.prejoined:
            actual = "a bundle without users" if schema.user is None else "histories that are in each request"
            do = "see the request itself" if schema.prejoined else ""
            raise RequestError(HISTORY, actual, "a bundle that stores histories of users", do, 404)
        request = decode_history_request(body)
        self.refresh_catalogs()
        at = parse_request_time(request.at, self._time, self._clock())
        recent = self._recent.read(request.recent, at, request.allow_unknown)
        query = Query(request.user, at, allow_unknown=request.allow_unknown, recent=recent)
        for step in view_in_steps(self.models, query, request.last):
            if isinstance(step, Reading):
                yield step
            else:
                content = {"user": request.user, "at": format_request_time(self.bundle.fitted, at)}
                yield orjson.dumps({**content, "unknown": {"user": query.unknown.user}, "histories": step})

    def read_history(self, body: bytes) -> bytes:
        """Return the events that a score reads of a user as JSON, as ``POST /history`` does."""
        return finish(self.read_history_in_steps(body))

    def list_digests(self) -> list[str]:
        """Return what identifies the served bundles, and the config of a pipeline."""
        return [*([] if self.pipeline is None else [self.pipeline.digest]), *(one.bundle.digest for one in self.models)]

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
            **({} if self.pipeline is None else {"policy_digest": self.pipeline.digest}),
        }

    def check(self) -> float:
        """Replay the golden requests to warm up and to verify that this machine scores like the exporter.

        Only the bundles are used, because live stores and catalogs contain later data.

        Raises:
            BundleError: if scores differ by more than ``MAX_DRIFT``.
        """
        if not (self.settings.are_default and self.pipeline is None and self.served.catalog.is_as_exported):
            for route in self.pipelines:
                self._answer_example(route)
            with contextlib.ExitStack() as closing:
                return max(
                    closing.enter_context(contextlib.closing(Service(model.bundle, Settings(pristine=True)))).check()
                    for model in self.models
                )
        return check_scores(self, self.bundle)

    def _answer_example(self, route: str) -> None:
        body = orjson.dumps(self.example(route))
        if route == RANK:
            self.rank(decode_request(body, self.bundle.fitted.schema)).json()
        else:
            finish(self._recommend(decode_recommend_request(body), logs=False)).json()

    def example(self, route: str | None = None) -> dict[str, Any]:
        """Return a valid request to a route, by default to ``route``: the first golden one, or one made of several."""
        route = route or self.route
        golden = dict(self.bundle.golden[0].request)
        if self.pipeline is None or route == RANK:
            return golden
        requests = [model.bundle.golden[0].request for model in self.pipeline.models.values()]
        context = {column: value for one in reversed(requests) for column, value in one["context"].items()}
        example = {key: value for key, value in requests[0].items() if key in ("user", "at", "k", "exclude_seen")}
        return {**example, "context": context, "allow_unknown": True}


def replay(folder: Path, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float64]]:
    """Score golden requests with a bundle: the ``replay`` function of export."""
    with contextlib.closing(Service(folder, Settings(pristine=True))) as service:
        return score_golden(service, golden)
