"""The bundles of a service, opened with their stores, and the stages that use them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from longrec.errors import BundleError
from longrec.exporting.bundle import ENCODER, Bundle
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.stage import Stages
from longrec.serve.open_model import OpenModel
from longrec.serve.pipeline_checks import check_pipeline
from longrec.serve.pipelines import OpenedPipeline, build_bundle_routes, group_bundles
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.settings import Settings
from longrec.serve.state import ServiceState
from longrec.serve.token_histories import TokenHistories
from longrec.serve.user_states import UserStates


@dataclass
class OpenedModels:
    """The bundles of a service.

    Attributes:
        served: the bundle that is served: of a pipeline the ranker's, or that of its first source. Live tokens and the
            names of events belong to it.
        models: all bundles, each once.
        routes: stages by route.
        pipeline: the opened pipeline. None for a bundle that is served alone.
        state: stores of recorded events. None if events are not recorded.
    """

    served: OpenModel
    models: list[OpenModel]
    routes: Mapping[str, Stages] = field(default_factory=dict)
    pipeline: OpenedPipeline | None = None
    state: ServiceState | None = None


def open_models(
    target: Bundle | Path,
    config: PipelineConfig | None,
    folder: Path,
    path: Path,
    settings: Settings,
    closing: contextlib.ExitStack,
) -> OpenedModels:
    """Open a bundle, or all bundles of a pipeline once, to be closed by a stack. An opened one stays open.

    Args:
        config: config of the pipeline. None for a bundle that is served alone.
        folder: folder that its paths start from.
        path: where the config was read, for errors.

    Raises:
        ConfigError: if a pipeline has faults, or its bundles do not fit together.
        BundleError: if the bundle is one of an encoder, or stores do not fit it.
        StoreError: if a store cannot be opened.
    """

    def open_bundle(own: Bundle | Path) -> Bundle:
        if isinstance(own, Bundle):
            return own
        bundle = Bundle.open(own, settings.private)
        closing.callback(bundle.close)
        return bundle

    if config is None:
        bundle = open_bundle(target)
        if bundle.manifest.kind == ENCODER:
            message, do = f"a bundle of an {bundle.manifest.kind}", "pass it with --events beside a ranker's bundle"
            raise BundleError(str(bundle.path), message, "a bundle of a ranker", do)
        opened = _open_stores([bundle], settings, closing)
        opened.routes = build_bundle_routes(opened.served)
        return opened
    headers = check_pipeline(config, folder, str(path))
    primary = next(key for key in ("rank.bundle", "prerank.bundle", *headers) if key in headers)
    groups = group_bundles(config, folder)
    first = next(own for own, keys in groups.items() if primary in keys)
    bundles = {first: open_bundle(target if isinstance(target, Bundle) else first)}
    bundles |= {own: open_bundle(own) for own in groups if own != first}
    opened = _open_stores(list(bundles.values()), settings, closing)
    by_key = {key: model for own, model in zip(bundles, opened.models) for key in groups[own]}
    opened.pipeline = OpenedPipeline.of(config, {key: by_key[key] for key in headers})
    opened.models = list(dict.fromkeys(opened.pipeline.models.values()))
    opened.routes = opened.pipeline.build_routes()
    return opened


def _open_stores(bundles: list[Bundle], settings: Settings, closing: contextlib.ExitStack) -> OpenedModels:
    """Open the stores and programs of bundles. The first one is served."""
    state = None
    if settings.records_events:
        state = ServiceState(bundles, settings)
        closing.callback(state.close)
    models = []
    for number, bundle in enumerate(bundles):
        locations = settings.tokens if number == 0 else {}
        if state is None:
            tokens, live = TokenHistories(bundle, locations), None
        else:
            own = state.token_locations if number == 0 else {}
            tokens = TokenHistories(bundle, {**locations, **own}, state.stores if number == 0 else None)
            live = state.live.get(bundle.digest)
        model = OpenModel(bundle, RequestEncoder(bundle, tokens, live), pristine=number == 0 and settings.pristine)
        closing.callback(model.close)
        models.append(model)
        if state is not None and bundle.manifest.states:
            store, late = state.open_states(bundle, settings), settings.lateness * bundle.fitted.schema.per_second
            model.encoder.use_states(UserStates(bundle, model.programs, store, late))
    return OpenedModels(models[0], models, state=state)
