"""Reading of the material of a diagnosis: codes, item vectors and the log of the training window.

Everything that needs no codebooks works for a table of codes too. With item vectors, codebooks are computed as means of
residuals, and labeled so.

Shapes: N items, L levels, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longrec.auditing.column_roles import choose_columns
from longrec.auditing.events import Events
from longrec.auditing.prepared_events import read_prepared
from longrec.auditing.reading import read_events
from longrec.data.relation import name
from longrec.errors import ConfigError, DataError, quote
from longrec.features.timestamp_grammar import guess_unit
from longrec.metrics.columns import Floats, Ints
from longrec.semantic_ids.diagnostics.code_tables import (
    REAL,
    Codes,
    TableReader,
    choose_key,
    choose_list,
    flatten_lists,
)
from longrec.semantic_ids.diagnostics.codebooks import compute_residual_means, sum_codewords
from longrec.semantic_ids.diagnostics.diagnosis import QUANTIZED, UNQUANTIZED, Material
from longrec.semantic_ids.diagnostics.item_pairs import count_exposure, list_next_items
from longrec.yaml_reader import read_yaml

if TYPE_CHECKING:
    from longrec.semantic_ids.churn import Churn
    from longrec.semantic_ids.settings import EventsConfig, TokenizeConfig

_TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Ticks of a unit per second."""


@dataclass(frozen=True)
class Window:
    """Columns of a log, and the end of its training window.

    Attributes:
        item, user, time, order, split: columns. None: by their names.
        until: end of the training window: a number in the unit of the column of the time, or a date such as 2026-01-31
            (UTC). Events from then on are left out.
    """

    item: str | None = None
    user: str | None = None
    time: str | None = None
    order: str | None = None
    split: str | None = None
    until: float | str | None = None


def read_material(
    source: Codes,
    label: str,
    *,
    vectors: Any = None,
    log: Any = None,
    against: Codes | None = None,
    vector: str | None = None,
    window: Window,
) -> Material:
    """Return the material of a diagnosis.

    Args:
        source: the codes.
        label: name of the codes on the page.
        vectors: table of item vectors: a key, and a list column. Or the YAML file of ``longrec tokenize``, whose
            section ``vectors`` says where they come from, and whose section ``events`` takes the part of ``log``.
        log: events of users: a file, a frame, or the folder of a prepared log.
        against: codes of another version.
        vector: list column of the vectors. Default: the only list column of numbers.
        window: columns of the log (``item`` also of the vectors), and the end of its training window.

    Raises:
        DataError: a table that cannot be used, or that has no item of the codes.
    """
    notes = list(source.notes)
    churn = None if against is None else _compare(source, against)
    material = Material(label, source.codes, source.sizes, facts=dict(source.facts))
    is_config = isinstance(vectors, (str, Path)) and str(vectors).endswith((".yaml", ".yml"))
    settings = _read_settings(vectors) if is_config else None
    if vectors is not None:
        keys, x, where = (
            _read_vectors(vectors, window.item, vector) if settings is None else _compute_vectors(settings, source)
        )
        source, x_ND = _match_vectors(source, keys, x, where, notes)
        material = _add_vectors(replace(material, codes=source.codes), source, x_ND, notes)
    elif source.tokenizer is not None:
        material = replace(material, codebooks=_to_list(source.tokenizer.codebooks))
    if log is not None:
        material = _add_log(material, source.items, log, window, notes)
    elif settings is not None and settings.events is not None:
        material = _add_events(material, source.items, settings.events, notes)
    return replace(material, churn=churn, notes=tuple(notes))


def _add_vectors(material: Material, source: Codes, x_ND: Floats, notes: list[str]) -> Material:
    material = replace(material, vectors=x_ND)
    if source.tokenizer is None:
        codebooks = compute_residual_means(x_ND, source.codes, source.sizes)
        notes.append(
            "The codes came without codebooks. The codebooks here are the means of the residuals of the items of each "
            "code, level by level: overlap, retention and codewords are those of these means."
        )
        quantized = sum_codewords(source.codes, codebooks)
        return replace(
            material,
            codebooks=codebooks,
            codebook_origin="computed as means of residuals",
            latents=x_ND,
            reconstructions={QUANTIZED: quantized},
        )
    import torch

    tokenizer = source.tokenizer
    with torch.no_grad():
        x, codes = torch.from_numpy(x_ND.astype(np.float32)), torch.from_numpy(source.codes.astype(np.int32))
        if x.shape[1] != tokenizer.decode(codes[:1]).shape[1]:
            width = tokenizer.decode(codes[:1]).shape[1]
            raise DataError("vectors", f"vectors of width {x.shape[1]}", f"width {width}, as the tokenizer has")
        latents = tokenizer.latent(x).numpy().astype(np.float64)
        reconstructions = {QUANTIZED: tokenizer.decode(codes).numpy()}
        if np.array_equal(latents, x.numpy()):
            latents = x_ND  # a method without an encoder: there is no autoencoder to measure
        else:
            reconstructions[UNQUANTIZED] = tokenizer.reconstruct(x).numpy()
        moved = float((tokenizer.codes(x) != codes).any(1).double().mean())
    if moved:
        notes.append(
            f"{100 * moved:.1f} % of the items have other codes than the nearest ones of their vectors: because of a "
            "capacity, or because the vectors are not those that were tokenized."
        )
    books = _to_list(tokenizer.codebooks)
    return replace(material, codebooks=books, latents=latents, reconstructions=reconstructions)


def _to_list(codebooks: Any) -> list[Floats]:
    return list(codebooks.detach().numpy().astype(np.float64))


def _read_settings(path: Any) -> TokenizeConfig:
    """Return the settings of a YAML file of ``longrec tokenize``."""
    from longrec.semantic_ids.settings import read_settings

    content = read_yaml(Path(path))
    if not isinstance(content, Mapping):
        raise ConfigError(str(path), ["must have sections, such as vectors and method"])
    return read_settings(content, str(path), Path(path).parent)[0]


def _compute_vectors(settings: TokenizeConfig, source: Codes) -> tuple[pa.Array, Floats, str]:
    """Return the keys and vectors that ``longrec tokenize`` reads. Text has the encoder of the folder."""
    from longrec.semantic_ids.text_encoder import TextEncoder
    from longrec.semantic_ids.vectors import read_vectors

    encoder = None if source.folder is None else TextEncoder.open(source.folder)
    own = read_vectors(settings.vectors, text_encoder=encoder, seed=settings.seed)
    return own.items, own.vectors.numpy().astype(np.float64), settings.vectors.run or str(settings.vectors.items)


def _add_events(material: Material, items: pa.Array, events: EventsConfig, notes: list[str]) -> Material:
    """Add exposure and pairs of the events that ``longrec tokenize`` reads."""
    from longrec.semantic_ids.item_events import read_item_events

    own = read_item_events(events, items, with_pairs=True)
    notes.append(f"Exposure and pairs are of the events before {events.until}, as the tokenizer's are.")
    facts = {**material.facts, "events": f"{own.events - own.unknown:,}"}
    return replace(material, exposure=own.counts.numpy(), pairs=own.pairs.numpy(), facts=facts)


def _read_vectors(vectors: Any, item: str | None, vector: str | None) -> tuple[pa.Array, Floats, str]:
    """Return keys and vectors of a table, and its name."""
    with TableReader() as reader:
        table = reader.open("items", vectors)
        key = choose_key(table, item)
        column = choose_list(table, vector, REAL, "vectors", "--vector")
        rows = table.table(f"SELECT {name(key)}, {name(column)} FROM {table.view}")
    x_ND = flatten_lists(rows[column], table.where, column).astype(np.float64)
    if not np.isfinite(x_ND).all():
        raise DataError(f"{table.where}: column {column!r}", "NaN or infinity", "finite numbers")
    return rows[key].combine_chunks(), x_ND, table.where


def _match_vectors(source: Codes, keys: pa.Array, x_ND: Floats, where: str, notes: list[str]) -> tuple[Codes, Floats]:
    """Return the codes of the items with a vector, and the vectors in their order."""
    at_N = _find(source.items, keys, where)
    present = at_N >= 0
    if not present.all():
        notes.append(f"{int((~present).sum()):,} of {len(at_N):,} items have no vector and are left out everywhere.")
    if present.sum() < 2:
        actual = f"the vector of 1 of the {len(at_N):,} items with codes"
        raise DataError(where, actual, "a vector of each item, and at least of two", "name the column: --item COLUMN")
    kept = replace(source, items=source.items.filter(pa.array(present)), codes=source.codes[present])
    return kept, x_ND[at_N[present]]


def _add_log(material: Material, items: pa.Array, log: Any, window: Window, notes: list[str]) -> Material:
    until, named = window.until, {role: column for role, column in vars(window).items() if role != "until"}
    if isinstance(log, (str, Path)) and (Path(log) / "log.json").exists():
        from longrec.data.log import Log

        events = read_prepared(Log.open(Path(log), stores=False))
        where = str(log)
    else:
        with TableReader() as reader:
            table = reader.open("log", log)
            roles = choose_columns(table, named, features=(), histories=())
            events, _ = read_events(table, replace(roles, label=None, label_sql=None))
            where = table.where
    taken = np.ones(len(events), bool)
    if events.split is not None:
        taken &= events.split == 0
        notes.append("Exposure and pairs are of the events whose split is train.")
    if until is not None:
        time, end = _read_until(until, events, where)
        taken &= time < end
        notes.append(f"Exposure and pairs are of the events before {until}.")
    if events.split is None and until is None:
        notes.append(
            "Exposure and pairs are of all events of the log. If it has events after the training window, end the "
            "window with `--until`, or name the column of the split with `--split`."
        )
    keys = pa.array(events.item_keys)
    number_I = _find(keys, items, where, codes_are_second=True)
    item_E = np.where(events.item >= 0, number_I[np.maximum(events.item, 0)], -1)[taken]
    unknown = float((item_E < 0).mean()) if len(item_E) else 0.0
    if unknown:
        notes.append(f"{100 * unknown:.1f} % of these events are of items without codes and are left out.")
    exposure = count_exposure(item_E, len(items))
    if not exposure.any():
        raise DataError(where, "no event of an item with codes in the training window", "events of these items")
    facts = {**material.facts, "events": f"{int(exposure.sum()):,}"}
    pairs = list_next_items(events.user[taken], item_E)
    return replace(material, exposure=exposure, pairs=pairs, facts=facts)


def _read_until(until: float | str, events: Events, where: str) -> tuple[Ints, float]:
    """Return the times, and the end of the window in their unit."""
    if events.time is None or not len(events):
        raise DataError(where, "no column of the time", "one, for `--until`")
    try:
        return events.time, float(until)
    except ValueError:
        unit = guess_unit(int(events.time.max()))
    try:
        end = datetime.fromisoformat(str(until))
    except ValueError:
        fault = f"until: {until!r} is no number and no date such as 2026-01-31"
        raise ConfigError("diagnose", [fault]) from None
    if unit is None:
        raise ConfigError("diagnose", ["until: the times are numbers that are no dates: use a number"])
    return events.time, (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp() * _TICKS[unit]


def _compare(source: Codes, against: Codes) -> Churn:
    """Return the churn of the items that both versions have."""
    from longrec.semantic_ids.churn import measure_churn

    at_N = _find(source.items, against.items, "against")
    common = at_N >= 0
    size = max(*source.sizes, *against.sizes)
    before, after = against.codes[at_N[common]], source.codes[common]
    return measure_churn(before.astype(np.int32), after.astype(np.int32), size)


def _find(keys: pa.Array, among: pa.Array, where: str, *, codes_are_second: bool = False) -> Ints:
    """Return the row of each key among others, -1 where there is none. Whole numbers of any width are alike.

    Args:
        codes_are_second: the items of the codes are the others. Default: they are the keys.

    Raises:
        DataError: keys of two kinds, or none that is there.
    """
    both = [one.cast(pa.int64()) if pa.types.is_integer(one.type) else one.cast(pa.string()) for one in (keys, among)]
    own, other = (among, keys) if codes_are_second else (keys, among)
    if both[0].type != both[1].type:
        do = "write the keys of both in one type: numbers, or text"
        raise DataError(where, f"items of the type {other.type}", f"{own.type}, as the codes have", do)
    at = pc.fill_null(pc.index_in(both[0], value_set=both[1]), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    if (at < 0).all():
        actual = f"no item of the codes, but items such as {quote(other[0].as_py())}" if len(other) else "no items"
        raise DataError(where, actual, f"items such as {quote(own[0].as_py())}", "name the column: --item COLUMN")
    return at
