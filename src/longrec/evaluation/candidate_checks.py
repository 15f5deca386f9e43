"""Checks of the log of requests and of the retrievers, before candidates are written as rows to train on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.splits import describe_timestamp
from longrec.errors import ConfigError, LongRecError, RunError
from longrec.exporting.bundle import Manifest
from longrec.serve.service import Service
from longrec.training.finished_run import Run, open_run
from longrec.training.seen_labels import SeenLabels, compute_seen_labels, read_seen_labels
from longrec.yaml_reader import load_yaml


def check_log(log: Log, run: Run) -> None:
    """Raise a RunError if the rows of a log are candidates themselves, and no events that requests ask for."""
    if log.schema.candidate is not None:
        wrong = f"rows of candidates (data.schema.candidate: {log.schema.candidate})"
        do = "name the run of a source of the pipeline, such as runs/sasrec"
        raise RunError(str(run.folder), wrong, "a log of events, each of which is a request", do)


def list_clashes(columns: Collection[str], written: Collection[str], where: str) -> None:
    """Raise a ConfigError if columns of a log have the names of columns that are written beside them."""
    clashes = sorted(set(columns) & set(written))
    if clashes:
        do = "rename them in data.log of the run, such as {query: SELECT * RENAME (source AS entry) FROM ...}"
        raise ConfigError(where, [f"has columns with the names of written ones: {', '.join(clashes)}; {do}"])


def warn_of_later_training(service: Service, run: Run, log: Log, timestamps: NDArray[np.int64]) -> list[str]:
    """Return a warning per bundle whose model may have learned from the requests, or that lacks events before them.

    Args:
        timestamps: timestamps of the requests, int64 ``[L]``.
    """
    assert service.pipeline is not None
    warnings = []
    step = log.schema.time is not None and log.schema.time.unit == "step"
    for key, model in service.pipeline.models.items():
        if not key.startswith(("recall.", "prerank.")):
            continue
        manifest = model.bundle.manifest
        seen = _read_seen(manifest, run, log)
        do = "its scores in these rows may be better than they will be; take requests after its training"
        if seen is None or seen.trained is None or seen.step != step:
            warnings.append(
                f"{key}: when its training ended is unknown, so it may have learned from the requests; {do}"
            )
            continue
        early = int((timestamps < seen.trained).sum())
        if early:
            end = describe_timestamp(seen.trained, step)
            warnings.append(
                f"{key}: its model was trained on labels available until {end}, and {early:,} of {len(timestamps):,} "
                f"requests are earlier; {do}"
            )
        if model.bundle.store is not None and manifest.counts.get("events", len(log)) < len(log):
            warnings.append(
                f"{key}: has {manifest.counts['events']:,} events, and the log {len(log):,}, so that histories may "
                "lack events before a request"
            )
    return warnings


def _read_seen(manifest: Manifest, run: Run, log: Log) -> SeenLabels | None:
    """Return the labels that the model of a bundle was trained on, None if they are unknown."""
    config = load_yaml(manifest.source.get("config") or "") or {}
    own, expected = config.get("data", {}), load_yaml(run.config.to_yaml())["data"]
    if own.get("log") == expected.get("log") and own.get("split") == expected.get("split"):
        return compute_seen_labels(log, ())
    folder = Path(config.get("fit", {}).get("runs", "runs")) / str(manifest.source.get("run"))
    try:
        return read_seen_labels(open_run(folder))
    except (LongRecError, OSError, ValueError, KeyError):
        return None
