"""A pipeline in this process, with traces of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from longrec.errors import ConfigError
from longrec.exporting.bundle import Bundle
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.trace_report import PipelineTrace
from longrec.serve.client import LocalClient
from longrec.serve.interface import encode_recommend_request
from longrec.serve.request_json import decode_recommend_request
from longrec.serve.service import Service
from longrec.serve.settings import Settings, build_settings

Time = int | float | str | datetime | None


class Pipeline(LocalClient):
    """An opened pipeline, for one thread at a time. Close it, or use it in a ``with`` block.

    Args:
        path: YAML file of the pipeline.
        settings: locations of live tokens and of recorded events.
        keep_log: write what it shows to the log of the pipeline, and count it for frequency caps.

    Raises:
        ConfigError: if the file has faults, or its bundles do not fit together.
        BundleError: if a bundle cannot be opened.
    """

    def __init__(self, path: str | Path, settings: Settings | None = None, *, keep_log: bool = False) -> None:
        self._service = Service(path, settings, keep_log=keep_log)
        if self._service.pipeline is None:
            self.close()
            raise ConfigError(str(path), ["is a bundle and no pipeline; longrec.client opens it"])

    @property
    def config(self) -> PipelineConfig:
        """The config of the pipeline."""
        assert self._service.pipeline is not None
        return self._service.pipeline.config

    @property
    def bundle(self) -> Bundle:
        """The bundle of the ranker, or of the first source without one. Keys and timestamps are as in all others."""
        return self._service.bundle

    @property
    def stages(self) -> list[str]:
        """Names of its stages, in order."""
        return [stage.name for stage in self._service.get_stages("/recommend").stages]

    @property
    def context(self) -> list[str]:
        """Columns of the context that a request must have."""
        return sorted({column for model in self._service.models for column in model.encoder.context})

    def trace(
        self,
        user: int | str,
        k: int = 10,
        at: Time = None,
        context: Mapping[str, Any] | None = None,
        exclude_seen: bool | None = None,
        allow_unknown: bool = False,
        seed: int | None = None,
    ) -> PipelineTrace:
        """Return what every stage did for a request, with the same arguments as ``recommend``. Nothing is logged.

        Raises:
            RequestError: if the request is invalid.
        """
        body = encode_recommend_request(user, k, at, context, None, exclude_seen, allow_unknown, seed=seed)
        answer, trace = self._service.trace(decode_recommend_request(body))
        return PipelineTrace(self._service.model, user, answer.at, trace.stages, answer.new_user)

    def list_stage_keys(
        self,
        user: int | str,
        k: int = 10,
        at: Time = None,
        context: Mapping[str, Any] | None = None,
        exclude_seen: bool | None = None,
        allow_unknown: bool = False,
    ) -> dict[str, list[Any]]:
        """Return the keys of the candidates after each stage, best first. Those of a source are its own items.

        It takes about as long as ``recommend``: unlike ``trace`` it looks for no reasons. Nothing is logged.

        Raises:
            RequestError: if the request is invalid.
        """
        body = encode_recommend_request(user, k, at, context, None, exclude_seen, allow_unknown)
        _, trace = self._service.trace(decode_recommend_request(body), reasons=False)
        return {stage.name: stage.own.keys.tolist() for stage in trace.stages}


def open_pipeline(
    path: str | Path,
    *,
    tokens: Mapping[str, str | Path] | None = None,
    events: str | Path | bool | None = None,
    state: str | Path | None = None,
    keep_log: bool = False,
) -> Pipeline:
    """Open a pipeline in this process.

    Args:
        path: YAML file of the pipeline.
        tokens, events, state: as in ``client``, for the ranker.
        keep_log: write what it shows to the log of the pipeline, and count it for frequency caps.

    Raises:
        ConfigError: if the file has faults, or its bundles do not fit together. All are listed.
        BundleError: if a bundle cannot be opened.
        StoreError: if a store cannot be opened.
    """
    return Pipeline(path, build_settings(tokens, events, state), keep_log=keep_log)
