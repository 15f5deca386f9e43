"""Opened pipelines: bundles, each opened once, and the stages of every route."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from longrec.errors import ConfigError
from longrec.exporting.bundle import RERANKER, RETRIEVER, Bundle, read_manifest
from longrec.features.duration import parse_duration
from longrec.pipeline.config import (
    SUFFIXES,
    MergeConfig,
    PipelineConfig,
    PrerankConfig,
    RankConfig,
    RecallSource,
    RerankConfig,
    read_pipeline,
)
from longrec.pipeline.deadline import Deadline
from longrec.pipeline.explore_config import ExploreConfig
from longrec.pipeline.formula import Formula
from longrec.pipeline.merge_order import MergeStage
from longrec.pipeline.rank import TopStage
from longrec.pipeline.stage import Query, Stage, Stages
from longrec.pipeline.stage_columns import StageColumns, list_rerank_names, list_stage_columns
from longrec.pipeline.trace import SOURCE
from longrec.serve.diversity_stages import (
    AttributeSimilarity,
    ControllableStage,
    DiversityStage,
    Similarity,
    SpacingStage,
    VectorSimilarity,
)
from longrec.serve.exploration_scorer import ExplorationScorer
from longrec.serve.explore_stage import ExploreStage
from longrec.serve.item_attributes import ItemAttribute, ItemVectors, is_attribute, read_numbers
from longrec.serve.mix_stage import MixStage, count_keys
from longrec.serve.open_model import OpenModel
from longrec.serve.pipeline_checks import list_bundles
from longrec.serve.rank_stage import RankStage
from longrec.serve.rerank_stage import RerankStage
from longrec.serve.retrieve_stage import RetrieveStage
from longrec.serve.shown_items import ShownItems
from longrec.serve.source_stage import SourceStage

RANK, RECOMMEND = "/rank", "/recommend"
RECALLED = 500
"""Smallest number of items that the retriever of ``--recall`` passes on to a ranker."""


def read_served_config(path: Path, recall: str | None, is_bundle: bool) -> tuple[PipelineConfig | None, Path]:
    """Return the config of a pipeline, None for a bundle alone, and the folder that its paths are relative to.

    Args:
        path: folder of a bundle, or YAML file of a pipeline.
        recall: bundle of a retriever for the bundle of a ranker.
        is_bundle: the path is that of an opened bundle, whatever its name.

    Raises:
        ConfigError: if the file has faults, or if there is a retriever for a file.
    """
    if not is_bundle and path.suffix in SUFFIXES and not path.is_dir():
        if recall is not None:
            raise ConfigError(str(path), ["--recall belongs to a bundle; name retrievers in recall of the file"])
        return read_pipeline(path), path.parent
    return (None if recall is None else build_recall_config(path, recall)), path


def build_recall_config(ranker: Path, recall: str) -> PipelineConfig:
    """Return the pipeline of a ranker behind one retriever, which has the name of its model: ``serve --recall``."""
    name, source = (re.sub(r"\W", "_", read_manifest(Path(one)).model, flags=re.ASCII) for one in (ranker, recall))
    return PipelineConfig(
        name=name,
        recall={source: RecallSource(bundle=str(Path(recall).absolute()), count=RECALLED)},
        rank=RankConfig(bundle=str(ranker.absolute())),
    )


def build_bundle_routes(model: OpenModel) -> dict[str, Stages]:
    """Return the stages of a bundle that is served alone, by route."""
    if model.bundle.manifest.kind == RETRIEVER:
        return {RECOMMEND: Stages([RetrieveStage(model)])}
    if model.bundle.manifest.kind == RERANKER:
        return {RANK: Stages([RerankStage(model)])}
    return {RANK: Stages([RankStage(model)])}


@dataclass(frozen=True)
class OpenedPipeline:
    """The opened bundles of a pipeline, and its stages.

    Attributes:
        config: its config.
        models: opened bundles by the path of their key in the config. Keys of one bundle share it.
        shown: items that users were shown. None if no rule counts them.
        digest: SHA-256 of the config and the digests of its bundles, which identifies what it computes.
    """

    config: PipelineConfig
    models: Mapping[str, OpenModel]
    shown: ShownItems | None
    digest: str

    @classmethod
    def of(cls, config: PipelineConfig, models: Mapping[str, OpenModel]) -> OpenedPipeline:
        """Return the pipeline over its opened bundles."""
        first = next(iter(models.values())).bundle
        caps = [] if config.mix is None else [cap for cap in config.mix.caps if cap.counted == "shown"]
        per_second = _get_units_per_second(first)
        spans = [parse_duration(cap.within) * per_second // 1_000 for cap in caps]
        content = config.model_dump(mode="json", by_alias=True)
        bundles = {key: model.bundle.digest for key, model in models.items()}
        for key in bundles:  # the same bundle in another folder computes the same
            section, *name, _ = key.split(".")
            inner = content[section]
            for one in name:
                inner = inner[int(one) if isinstance(inner, list) else one]
            inner.pop("bundle")
        content.pop("log")
        if content["explore"] is None:  # as before there was such a section
            content.pop("explore")
        digest = hashlib.sha256(orjson.dumps([content, bundles], option=orjson.OPT_SORT_KEYS)).hexdigest()
        return cls(config, models, ShownItems(max(spans)) if spans else None, digest)

    def take_over(self, former: OpenedPipeline) -> None:
        """Continue the counts of shown items of a pipeline that this one replaces."""
        if self.shown is not None and former.shown is not None:
            self.shown.take_over(former.shown)

    @property
    def primary(self) -> OpenModel:
        """The ranker, or the first source without one: requests and events are read by its schema."""
        return self.models.get("rank.bundle") or self.models.get("prerank.bundle") or next(iter(self.models.values()))

    def build_routes(self) -> dict[str, Stages]:
        """Return the stages of each route."""
        routes = {RECOMMEND: Stages(list(self._build_stages()))}
        if self.config.rank is not None:
            routes[RANK] = Stages([RankStage(self.models["rank.bundle"], formula=_get_formula(self.config.rank))])
        return routes

    def _build_stages(self) -> Iterator[Stage]:
        config = self.config
        for name, source in config.recall.items():
            model, where = self.models[f"recall.{name}.bundle"], config.filter.where
            deadline = None if source.deadline_ms is None else source.deadline_ms / 1_000
            retrieve, unfiltered = (
                RetrieveStage(model, source.count, f"{SOURCE}{name}", where=condition, source=name, deadline=deadline)
                for condition in (where, None)
            )
            yield _with_deadline(SourceStage(name, retrieve, unfiltered if where else None), source.deadline_ms)
        if len(config.recall) > 1 or config.merge != MergeConfig():
            yield self._build_merge(config.merge)
        for section, own in (("prerank", config.prerank), ("rank", config.rank)):
            if own is not None:
                yield self._build_ranker(section, own)
        for at, (one, name) in enumerate(zip(config.rerank, list_rerank_names(config))):
            yield _with_deadline(self._build_rerank(one, at, name), one.deadline_ms, one.count)
        if config.mix is not None:
            yield self._build_mix()
        if config.explore is not None:
            yield self._build_explore(config.explore)
        yield TopStage()

    def _build_merge(self, config: MergeConfig) -> MergeStage:
        names = [f"{SOURCE}{name}" for name in self.config.recall]
        weights = {f"{SOURCE}{name}": weight for name, weight in config.weights.items()}
        by = None if config.by is None else f"{SOURCE}{config.by}"
        return MergeStage(names, config.count, config.order, weights, by)

    def _build_ranker(self, section: str, config: PrerankConfig) -> Stage:
        deadline = None if config.deadline_ms is None else config.deadline_ms / 1_000
        model = self.models[f"{section}.bundle"]
        stage = RankStage(
            model,
            True,
            section,
            keep=config.count,
            formula=_get_formula(config),
            deadline=deadline,
            filled=self._fill(model, section),
        )
        return _with_deadline(stage, config.deadline_ms, config.count)

    def _fill(self, model: OpenModel, stage: str) -> StageColumns:
        """Return the reader of the columns of the candidate that a stage reads of the stages before it."""
        return StageColumns(list_stage_columns(self.config, stage), model.encoder.candidate_context)

    def _build_rerank(self, config: RerankConfig, at: int, name: str) -> Stage:
        if config.method == "model":
            model = self.models[f"rerank.{at}.bundle"]
            return RerankStage(model, True, name, count=config.count, filled=self._fill(model, name))
        if config.method in ("controllable", "spacing"):
            stage = SpacingStage if config.method == "spacing" else ControllableStage
            return stage(config, self._get_attribute(str(config.attribute)), name)
        similarity: Similarity
        if config.vectors is not None:
            similarity = VectorSimilarity(ItemVectors(self.models[f"recall.{config.vectors}.bundle"]))
        else:
            similarity = AttributeSimilarity(self._get_attribute(str(config.attribute)))
        return DiversityStage(config, similarity, name)

    def _build_mix(self) -> MixStage:
        config = self.config.mix
        assert config is not None
        attributes = {name: self._get_attribute(name) for _, name in config.list_attributes()}
        counters = {"shown": self._count_shown, "events": self._count_events}
        per_second, explores = _get_units_per_second(self.primary.bundle), self.config.explore is not None
        return MixStage(config, attributes, counters, per_second, explores=explores)

    def _build_explore(self, config: ExploreConfig) -> ExploreStage:
        model = self.models["explore.bundle"]
        scorer = ExplorationScorer(model, self._fill(model, "explore"))
        counts = None if config.below is None else partial(read_numbers, model, config.below.column)
        return ExploreStage(config, scorer, counts, propensities=self.config.log is not None)

    def _get_attribute(self, name: str) -> ItemAttribute:
        owner = next(model for model in self.models.values() if is_attribute(model.bundle.fitted, name))
        return ItemAttribute(owner, name)

    def _count_shown(self, query: Query, start: int) -> Mapping[Any, int]:
        assert self.shown is not None
        return self.shown.count(query.user, start, query.timestamp)

    def _count_events(self, query: Query, start: int) -> Mapping[Any, int]:
        """Count the events of a user by item, from the first source, because every retriever stores all events."""
        model = next(iter(self.models.values()))
        rows, times = model.encoder.read_seen_events(query)
        keys = model.catalog.keys
        counts = count_keys(rows[(times >= start) & (rows > 0)])
        return {keys[row - 1]: count for row, count in counts.items()}


def group_bundles(config: PipelineConfig, folder: Path) -> dict[Path, list[str]]:
    """Return the keys of a pipeline by the bundle that they name, so that each bundle is opened once."""
    groups = dict[Path, list[str]]()
    for key, path in list_bundles(config).items():
        groups.setdefault((folder / path).resolve(), []).append(key)
    return groups


def _with_deadline(stage: Stage, milliseconds: float | None, keep: int | None = None) -> Stage:
    return stage if milliseconds is None else Deadline(stage, milliseconds / 1_000, keep)


def _get_formula(config: PrerankConfig) -> Formula | None:
    return None if config.score is None else Formula(config.score)


def _get_units_per_second(bundle: Bundle) -> int:
    time = bundle.fitted.schema.time
    return 1 if time is not None and time.unit == "step" else 1_000
