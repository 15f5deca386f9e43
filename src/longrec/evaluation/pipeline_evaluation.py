"""Evaluation of a pipeline from end to end: metrics of the list after every stage, with intervals over users."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.errors import ConfigError, RunError
from longrec.evaluation.existing import ExistingItems, ItemRows
from longrec.evaluation.requests import Contexts, Targets, choose_requests
from longrec.evaluation.results import PipelineEvaluation, StageMetrics
from longrec.evaluation.stage_lists import (
    ALONE,
    FLOOR,
    StageLists,
    compute_budget,
    find_allowed,
    list_floors,
    list_stages,
    read_vectors,
)
from longrec.metrics import rate_lists
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.stage_columns import EXPLORE
from longrec.progress import Progress
from longrec.serve.service import Service
from longrec.training.finished_run import Run, open_run
from longrec.training.list_metrics import ListEvaluator
from longrec.training.settings import EvaluateConfig
from longrec.yaml_reader import load_yaml

ROWS = 2_000
"""Number of requests that are answered by default."""
LEFT_OUT = "left out, so that all lists are those of pages that do not explore"
"""What is said of the stage that draws at random."""
METRICS = ("hr", "ndcg", "recall", "precision", "mrr", "map")


def evaluate_pipeline(
    pipeline: str | Path,
    requests: str | Path | Run,
    split: str = "test",
    *,
    k: int | None = None,
    count: int | None = ROWS,
    targets: Targets = "next",
    vectors: str | None = None,
    n_resamples: int | None = None,
    seed: int | None = None,
    quiet: bool = False,
) -> PipelineEvaluation:
    """Answer requests of a prepared log with a pipeline in this process, and measure the list after every stage.

    A request is at the timestamp of its row, and every stage reads strictly earlier events alone.

    Args:
        pipeline: YAML file of the pipeline.
        requests: run, or its folder, whose prepared log has the requests.
        split: split of the requests.
        k: number of items of the page, and cut of the metrics. Default: the first of ``evaluate.k`` of the run.
        count: number of requests, drawn once. None for all.
        targets: ``next``: the item of each positive row. ``later``: all positives of a user from the first one of the
            split on.
        vectors: source whose item vectors diversity compares. Default: the first that has vectors.
        n_resamples, seed: of the bootstrap, and the seed of the sample. Default: those of the run.
        quiet: print no progress.

    Raises:
        ConfigError: a pipeline with faults, or a log that has no such requests.
        BundleError: a bundle that cannot be opened.
        RunError: a run that is not finished, bundles of other keys than the log's, or no positive rows.
        RequestError: a request that the bundles cannot answer.
    """
    run = open_run(requests)
    arguments = {"k": None if k is None else (k,), "n_resamples": n_resamples, "seed": seed}
    config = run.config.evaluate.model_copy(
        update={key: value for key, value in arguments.items() if value is not None}
    )
    cut = config.k[0]
    if cut < 1:
        raise ConfigError("k", [f"must be at least 1, got {cut}"])
    log = run.log()
    chosen = choose_requests(log, split, targets, count, config.seed)
    with contextlib.closing(Service(pipeline, keep_log=False)) as service:
        if service.pipeline is None:
            raise ConfigError(str(pipeline), ["is a bundle and no pipeline; evaluate the run of its model"])
        check_same_keys(service, log)
        opened, rows = service.pipeline, ItemRows(log)
        read = read_vectors(
            {name: opened.models[f"recall.{name}.bundle"] for name in opened.config.recall}, log, vectors
        )
        contexts = Contexts(log, sorted({column for model in service.models for column in model.encoder.context}))
        existing = ExistingItems(log, rows, config.catalog)
        budget = max(compute_budget(opened.config), cut)
        with Progress(len(chosen), opened.config.name, "requests", stream=io.StringIO() if quiet else None) as progress:
            lists = list_stages(service, chosen, contexts, existing, cut, progress)
        allowed = find_allowed(service, log, rows)
        lists |= list_floors(chosen, existing, allowed, budget, opened.config.filter.seen, config.seed)
        warnings = [*contexts.warn(), *_warn_of_bundles(service, run, log)]
        digest = opened.digest
    evaluator = ListEvaluator(log, chosen.rows, config, chosen.relevant, chosen.owner)
    own_vectors = None if read is None else read[1]
    measured = {name: _measure(evaluator, own, cut, budget, own_vectors) for name, own in lists.items()}
    warnings += [
        f"{name}: left out of {own.late:,} of {len(chosen):,} requests, whose deadline was over on this machine"
        for name, own in lists.items()
        if own.late
    ]
    absent = sum(int((one == 0).sum()) for own in lists.values() for one in own.items)
    if absent:
        warnings.append(f"{absent:,} listed items are not in the log of the requests, and are left out of all lists")
    return PipelineEvaluation(
        pipeline=service.model,
        digest=digest,
        split=split,
        log=log.folder.name,
        k=cut,
        budget=budget,
        requests=len(chosen),
        available=chosen.available,
        users=evaluator.resamples.users,
        catalog=evaluator.catalog,
        n_resamples=config.n_resamples,
        seed=config.seed,
        protocol=_describe(config, opened.config, targets, None if read is None else read[0], cut),
        warnings=tuple(warnings),
        stages=measured,
        slices=evaluator.slice(evaluator.rank(_last_stage(lists).collect()), cut),
        row=chosen.rows,
        user=log.user(chosen.rows),
        time=log.timestamps.take(chosen.rows),
    )


def _last_stage(lists: Mapping[str, StageLists]) -> StageLists:
    """Return the lists of the page."""
    return [own for name, own in lists.items() if not name.startswith((ALONE, FLOOR))][-1]


def _measure(
    evaluator: ListEvaluator, own: StageLists, k: int, budget: int, vectors: NDArray[np.float32] | None
) -> StageMetrics:
    lists = own.collect()
    longest = {f"recall@{budget}": rate_lists(evaluator.rank(lists), [budget], ("recall",))[f"recall@{budget}"]}
    values = {
        **rate_lists(evaluator.rank(lists), [k], METRICS),
        **(longest if budget > k else {}),
        "candidates": lists.size,
        **evaluator.rate_beyond(lists, k, vectors),
    }
    if own.seconds:
        values["cpu_ms"] = np.array(own.seconds) * 1_000
    first = lists.cut(k)
    drawn = evaluator.draw(values, first, k)
    return StageMetrics(values, np.searchsorted(evaluator.catalog_items, first.item), first.group, drawn)


def check_same_keys(service: Service, log: Log) -> None:
    """Raise a RunError if keys or timestamps of the log are of other types than those of the bundles."""
    schema, own = service.bundle.fitted.schema, log.schema
    units = ["steps" if one.time is not None and one.time.unit == "step" else "timestamps" for one in (schema, own)]
    pairs = {
        "time": units,
        "user": ["integers" if one.keys.numeric else "text" for one in (service.bundle.users, log.users)],
        "item": ["integers" if one.keys.numeric else "text" for one in (service.bundle.items, log.items)],
    }
    for what, (of_bundle, of_log) in pairs.items():
        if of_bundle != of_log:
            do = "name the run of a model of this pipeline"
            raise RunError(str(log.folder), f"{what} as {of_log}", f"{what} as {of_bundle}, as in the bundles", do)


def _warn_of_bundles(service: Service, run: Run, log: Log) -> list[str]:
    """Return a warning per bundle that may have learned from the requests, or that lacks events of the log."""
    assert service.pipeline is not None
    warnings, expected = [], load_yaml(run.config.to_yaml())["data"]
    for key, model in service.pipeline.models.items():
        manifest = model.bundle.manifest
        data = (load_yaml(manifest.source.get("config") or "") or {}).get("data", {})
        differing = [name for name in ("log", "split") if data.get(name) != expected.get(name)]
        if differing:
            warnings.append(
                f"{key}: its model was trained with another data.{' and data.'.join(differing)} than {run.name}, so it "
                "may have learned from the requests; these metrics are then too high"
            )
        if model.bundle.store is not None and manifest.counts.get("events", len(log)) < len(log):
            warnings.append(
                f"{key}: has {manifest.counts['events']:,} events, and the log {len(log):,}, so that histories may "
                "lack events before a request"
            )
    return warnings


def _describe(
    config: EvaluateConfig, pipeline: PipelineConfig, targets: Targets, vectors: str | None, k: int
) -> dict[str, str]:
    """Return what the metrics depend on, in words."""
    relevant = {
        "next": "the item of each positive row",
        "later": "the items of all positives of a user from the first one of the split on",
    }
    items = {
        "existing": "sources retrieve items with an event before the request, and relevant ones",
        "all": "sources retrieve all items",
    }
    return {
        "relevant": relevant[targets],
        "candidates": items[config.catalog],
        "seen": "left out by the pipeline, also where one is relevant" if pipeline.filter.seen else "not left out",
        "diversity": "not measured: no source has vectors"
        if vectors is None
        else f"cosine of the vectors of {vectors}",
        "popularity": "positives of train",
        "requests without a relevant item in a list": f"count as 0; lists are cut at {k}",
        **({} if pipeline.explore is None else {EXPLORE: LEFT_OUT}),
    }
