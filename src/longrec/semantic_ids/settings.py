"""Settings of ``longrec tokenize``: where item vectors come from, the method, the capacity, and events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Setting

from longrec.config import Strict, parse
from longrec.data.settings import OptionalSourceT, Source, SourceT, TimestampT
from longrec.errors import ConfigError
from longrec.features.duration import Duration
from longrec.features.time_column import TimeColumn
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.tokenizer import Tokenizer


def _time(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


TimeT = Annotated[TimeColumn, BeforeValidator(_time)]


class VectorsConfig(Strict):
    """Where the vectors of items come from: a list column or the text of a table, or a trained retriever."""

    items: OptionalSourceT = Setting(None, description="table with one row per item: a file, or {query: ...}")
    item: str = Setting("item_id", description="column of the item in the table, and in the folder that is written")
    column: str | None = Setting(None, description="list column with the vector of each item")
    text: tuple[str, ...] = Setting(
        (), description="instead of column: columns of text; TF-IDF and truncated SVD make vectors of them"
    )
    width: int = Setting(64, ge=1, description="of text: width of its vectors")
    run: str | None = Setting(
        None, description="instead of items: run folder or bundle of a retriever with item vectors, such as sasrec"
    )

    @model_validator(mode="after")
    def _check(self) -> VectorsConfig:
        if (self.items is None) == (self.run is None):
            raise ValueError("needs exactly one of items and run")
        if self.items is not None and (self.column is None) == (not self.text):
            raise ValueError("items needs exactly one of column and text")
        if self.run is not None and (self.column is not None or self.text):
            raise ValueError("column and text belong to items; the vectors of a run are those of its model")
        return self


class EventsConfig(Strict):
    """Log of events, of which those before ``until`` give weights of items and pairs of items."""

    log: SourceT = Setting(description="the events: a file, a glob, a list of them, or {query: ...}")
    user: str = Setting("user_id", description="column of the user")
    item: str = Setting("item_id", description="column of the item")
    time: TimeT = Setting(description="column of the time, or {column, unit, format} as in a schema")
    until: TimestampT = Setting(
        description="end of the training window: only events strictly before this timestamp are read"
    )
    max_gap: Duration | None = Setting(
        None, description="largest time between the two events of a pair, such as 1h; default: any"
    )

    @model_validator(mode="after")
    def _check(self) -> EventsConfig:
        if self.until is None:
            raise ValueError("until is required: the first timestamp of the evaluation")
        return self


class CapacityConfig(Capacity):
    """Bound on the load of each code, and the weights that make up a load."""

    weights: str | Literal["events"] | None = Setting(
        None,
        description="weight of each item: a column of the table, or events for the number of its events in the "
        "training window; default: 1 each",
    )

    def bound(self) -> Capacity:
        """Return the bound alone."""
        return Capacity(tau=self.tau, floor=self.floor, items_factor=self.items_factor)


class TokenizeConfig(Strict):
    """Settings of ``longrec tokenize``."""

    vectors: VectorsConfig = Setting(description="where the vectors of items come from")
    method: str | dict[str, Any] = Setting(
        "rq_kmeans", description="rq_kmeans, rq_vae or drq, or a mapping of its name and its settings"
    )
    capacity: CapacityConfig | None = Setting(None, description="bound on the load of each code; default: none")
    events: EventsConfig | None = Setting(None, description="log that weights and pairs are counted in")
    seed: int = Setting(0, ge=0, description="seed of all random draws")


def read_settings(content: Mapping[str, Any], where: str, folder: Path) -> tuple[TokenizeConfig, Tokenizer]:
    """Parse the settings, with paths relative to a folder.

    Returns:
        The settings, and the tokenizer before its fit.

    Raises:
        ConfigError: all faults together.
    """
    faults: list[str] = []
    config, tokenizer = None, None
    try:
        config = parse(TokenizeConfig, content, where)
    except ConfigError as error:
        faults += error.faults
    method = content.get("method", "rq_kmeans")
    if isinstance(method, (str, Mapping)):
        try:
            tokenizer = build_tokenizer(method, where)
        except ConfigError as error:
            faults += [fault if fault.startswith("method") else f"method.name: {fault}" for fault in error.faults]
    if config is not None:
        faults += _find_misfits(config, tokenizer)
    if faults or config is None or tokenizer is None:
        raise ConfigError(where, faults)
    return _resolve_paths(config, folder), tokenizer


def _find_misfits(config: TokenizeConfig, tokenizer: Tokenizer | None) -> list[str]:
    """Return the faults of sections that do not fit each other."""
    faults = []
    weights = None if config.capacity is None else config.capacity.weights
    if weights == "events" and config.events is None:
        faults.append("capacity.weights: events are counted in the log of the section events, which is missing")
    if weights not in (None, "events") and config.vectors.items is None:
        faults.append("capacity.weights: a column needs vectors.items; with vectors.run set capacity.weights=events")
    contrast = getattr(tokenizer.settings, "contrast", 0) if tokenizer is not None else 0
    if contrast and config.events is None:
        faults.append("method.contrast: pairs of items are read from the section events, which is missing")
    if config.events is not None and weights != "events" and not contrast:
        faults.append("events: are not read; set capacity.weights=events or method.contrast, or leave them out")
    return faults


def _resolve_paths(config: TokenizeConfig, folder: Path) -> TokenizeConfig:
    def resolve(path: str) -> str:
        return path if "://" in path else str(folder / Path(path).expanduser())

    def resolve_source(source: Source | None) -> Source | None:
        return None if source is None else source.map_paths(resolve)

    own = config.vectors
    run = None if own.run is None else resolve(own.run)
    vectors = own.model_copy(update={"items": resolve_source(own.items), "run": run})
    events = config.events
    if events is not None:
        events = events.model_copy(update={"log": resolve_source(events.log)})
    return config.model_copy(update={"vectors": vectors, "events": events})
