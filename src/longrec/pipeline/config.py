"""Config of a pipeline: a YAML file with a section per stage, in the order in which stages run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from longrec.config import Strict, apply_overrides, parse, split_faults
from longrec.errors import ConfigError, nearest
from longrec.pipeline.explore_config import ExploreConfig
from longrec.pipeline.formula import Formula
from longrec.pipeline.merge_order import Order
from longrec.pipeline.mix_config import MixConfig
from longrec.yaml_reader import read_yaml

SUFFIXES = (".yaml", ".yml")
SECTIONS = ("recall", "filter", "merge", "prerank", "rank", "rerank", "mix", "explore", "log")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=60)]
_Deadline = Annotated[float | None, Field(gt=0)]
DEADLINE = (
    "Milliseconds since the request began. If the stage has not begun by then, it is left out and the answer says so."
)
Method = Literal["mmr", "dpp", "controllable", "spacing", "model"]


class RecallSource(Strict):
    """A candidate source: the bundle of a retriever. `sasrec: sasrec.bundle` is short for it."""

    bundle: str = Field(description="Bundle of a retriever.")
    count: int = Field(300, gt=0, le=100_000, description="Number of items it retrieves, or `k` if that is more.")
    deadline_ms: _Deadline = Field(None, description=DEADLINE)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"bundle": value} if isinstance(value, str) else value


class FilterConfig(Strict):
    """Items that are no candidates."""

    seen: bool = Field(
        True,
        description="Leave out the items of earlier events of the user. A request can overrule it (`exclude_seen`).",
    )
    where: str | None = Field(
        None,
        description="Condition on raw columns of the item table, such as `year >= 1990 AND genre = 'Comedy'`. Only "
        "items that meet it are retrieved, as many as `count` says.",
    )


class MergeConfig(Strict):
    """How the lists of several sources become one list."""

    count: int | None = Field(None, gt=0, description="Number of items to keep, or `k` if that is more. Default all.")
    order: Order = Field(
        "interleave",
        description="`interleave`: the sources take turns. `fusion`: reciprocal rank fusion. `score`: by the score of "
        "the source in `by`, then the other items.",
    )
    weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Weight by source, 1 by default: turns of each round, or factors of a fusion."
    )
    by: str | None = Field(None, description="Source whose score orders the list, with `order: score`.")

    @model_validator(mode="after")
    def _check_by(self) -> MergeConfig:
        if (self.order == "score") != (self.by is not None):
            raise ValueError("by belongs to order: score, which needs it")
        return self


class PrerankConfig(Strict):
    """A light ranker that cuts the list for the ranker behind it."""

    bundle: str = Field(description="Bundle of a ranker.")
    count: int | None = Field(None, gt=0, description="Number of items to keep, or `k` if that is more. Default all.")
    score: str | None = Field(
        None,
        description="Formula of the score, such as `label * buy ** 0.5`: task names, numbers, `+ - * / **` and "
        "parentheses. `label` is the label of the schema, `score` the model's own score, which is the default.",
    )
    deadline_ms: _Deadline = Field(
        None, description=f"{DEADLINE} The order of the stage before then stays. It is also checked while scoring."
    )

    @model_validator(mode="after")
    def _check_formula(self) -> PrerankConfig:
        if self.score is not None:
            Formula(self.score)
        return self


class RankConfig(PrerankConfig):
    """The ranker."""


class RerankConfig(Strict):
    """One method that rearranges the list as a whole."""

    own_keys: ClassVar[dict[str, tuple[str, ...]]] = {
        "mmr": ("lambda", "vectors", "attribute"),
        "dpp": ("theta", "window", "vectors", "attribute"),
        "controllable": ("attribute", "diversity"),
        "spacing": ("attribute", "at_most", "within"),
        "model": ("bundle",),
    }
    method: Method = Field(
        description="`mmr`: maximal marginal relevance. `dpp`: determinantal point process. `controllable`: the "
        "controllable aggregation of ComiRec, which weighs scores against pairs of items with different values of an "
        "attribute. "
        "`spacing`: `at_most` items of one value of an attribute in any `within` neighboring positions. `model`: a "
        "trained re-ranker of whole lists."
    )
    count: int | None = Field(
        None, gt=0, description="Number of items to keep, or `k` if that is more. Default all. The rest is cut off."
    )
    trade_off: float | None = Field(
        None, alias="lambda", ge=0, le=1, description="Weight of relevance against novelty in `mmr`, default 0.7."
    )
    theta: float | None = Field(
        None, ge=0, le=1, description="Weight of relevance against diversity in `dpp`, default 0.7."
    )
    window: int | None = Field(
        None, gt=0, description="Number of neighboring items that `dpp` makes diverse. Default the whole list."
    )
    diversity: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="What a pair of items with different values is worth in `controllable`, where 1 is the distance "
        "of the highest score of the list from the lowest one. Default 0.25. 0 sorts by score.",
    )
    at_most: int | None = Field(None, gt=0, description="Most items of one value in `spacing`, default 1.")
    within: int | None = Field(None, gt=0, description="Number of neighboring positions in `spacing`, default 3.")
    vectors: str | None = Field(None, description="Source in `recall` whose item vectors say how similar items are.")
    attribute: str | None = Field(
        None, description="Feature of the item, of kind id, multi_id or bucketized, whose values say so instead."
    )
    bundle: str | None = Field(None, description="Bundle of a re-ranker, with method `model`.")
    deadline_ms: _Deadline = Field(None, description=f"{DEADLINE} The order of the stage before then stays.")

    @model_validator(mode="after")
    def _check_method(self) -> RerankConfig:
        keys = {"lambda" if key == "trade_off" else key for key in self.model_fields_set}
        own = self.own_keys[self.method]
        faults = [
            f"{key} does not belong to method {self.method}, which takes {', '.join(own)}"
            for key in sorted(keys - {"method", "count", "deadline_ms", *own})
        ]
        if self.method in ("controllable", "spacing") and self.attribute is None:
            what = "are spaced" if self.method == "spacing" else "should differ"
            faults.append(f"{self.method} needs attribute, the feature of the item whose values {what}")
        elif self.method == "model" and self.bundle is None:
            faults.append("model needs bundle, the bundle of a re-ranker")
        elif self.method in ("mmr", "dpp") and (self.vectors is None) == (self.attribute is None):
            faults.append(
                f"{self.method} needs either vectors, a source in recall, or attribute, a feature of the item"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self


class LogConfig(Strict):
    """Where the shown items are logged. `log: impressions/` is short for it."""

    folder: str = Field(description="Folder for Parquet files with one row per shown item.")
    flush_seconds: float = Field(1.0, gt=0, le=60, description="Longest time that an answer is not on the disk yet.")
    rotate_seconds: float = Field(
        300.0, gt=0, description="Time after which rows become a Parquet file, which `longrec prepare` reads."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value


class PipelineConfig(Strict):
    """A pipeline: from candidate sources to the items that a user is shown. Paths are relative to the file."""

    next_fault: ClassVar[re.Pattern[str] | None] = re.compile(r"; (?=(?:merge|rerank|mix|explore)\.)")

    name: Name = Field("pipeline", description="Name of the pipeline. Default the name of the file.")
    recall: dict[Name, RecallSource] = Field(description="Candidate sources by name.", min_length=1, max_length=60)
    filter: FilterConfig = Field(FilterConfig(), description="Items that are no candidates.")
    merge: MergeConfig = Field(MergeConfig(), description="How the lists of several sources become one list.")
    prerank: PrerankConfig | None = Field(None, description="A light ranker that cuts the list.")
    rank: RankConfig | None = Field(None, description="The ranker.")
    rerank: tuple[RerankConfig, ...] = Field((), description="Methods that rearrange the list, applied in order.")
    mix: MixConfig | None = Field(None, description="Rules for the page that is shown.")
    explore: ExploreConfig | None = Field(
        None, description="One position of the page that an uncertain item fills at random."
    )
    log: LogConfig | None = Field(None, description="Where the shown items are logged.")

    @model_validator(mode="after")
    def _check_sources(self) -> PipelineConfig:
        faults = [f"{path}: {_describe_unknown(name, self.recall)}" for path, name in self._list_used_sources()
                  if name not in self.recall]  # fmt: skip
        if self.explore is not None and self.explore.bundle is None and self.rank is None:
            faults.append("explore.bundle: is required without a section rank, whose bundle is the default")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _list_used_sources(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of the keys that name a source, with the name."""
        yield from ((f"merge.weights.{name}", name) for name in self.merge.weights)
        if self.merge.by is not None:
            yield "merge.by", self.merge.by
        yield from ((f"rerank.{at}.vectors", one.vectors) for at, one in enumerate(self.rerank) if one.vectors)
        if self.mix is not None:
            yield from ((f"mix.{path}", name) for path, name in self.mix.list_sources())


def _describe_unknown(name: str, valid_names: Any) -> str:
    near = nearest(name, valid_names)
    return f"no source in recall named {name!r}; " + (
        f"did you mean {near!r}?" if near else f"known: {', '.join(valid_names)}"
    )


RANKERS = ("rank", "prerank")
"""Sections of a ranker, whose candidates are those of the sections before it."""


def cut_pipeline(config: PipelineConfig, before: str) -> PipelineConfig:
    """Return a pipeline without the section of a ranker, and without those behind it.

    Args:
        before: ``rank`` or ``prerank``.

    Raises:
        ConfigError: no such section.
    """
    if before not in RANKERS:
        raise ConfigError("before", [f"no section of a ranker named {before!r}; known: {', '.join(RANKERS)}"])
    prerank = None if before == "prerank" else config.prerank
    none = {"explore": None, "log": None}
    return config.model_copy(update={"prerank": prerank, "rank": None, "rerank": (), "mix": None, **none})


def is_pipeline(content: Any) -> bool:
    """Return True if the content of a YAML file is a pipeline and no config of a training: its keys say so."""
    return isinstance(content, dict) and "recall" in content


def is_pipeline_file(path: Any) -> bool:
    """Return True for the path of a YAML file that is a pipeline. False for a file that cannot be read, too."""
    if not isinstance(path, str | Path) or Path(path).suffix not in SUFFIXES:
        return False
    try:
        return is_pipeline(read_yaml(path))
    except ConfigError:
        return False


def read_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read the config of a pipeline.

    Args:
        overrides: settings such as ``rank.count=50``.

    Raises:
        ConfigError: if the file has faults. All are listed.
    """
    content = apply_overrides(read_yaml(path), overrides)
    if "recall" not in content:
        do = "a pipeline has a section recall, such as {sasrec: {bundle: sasrec.bundle}}"
        raise ConfigError(str(path), [f"recall: is required; {do}"])
    stem = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in Path(path).stem)
    try:
        return parse(PipelineConfig, {"name": stem if stem[:1].isalpha() else "pipeline", **content}, str(path))
    except ConfigError as error:
        raise ConfigError(str(path), split_faults(PipelineConfig, error.faults)) from None
