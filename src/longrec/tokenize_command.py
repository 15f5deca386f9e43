"""Command ``longrec tokenize``: semantic IDs of items from their vectors."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from longrec.semantic_ids.settings import TokenizeConfig
    from longrec.semantic_ids.stored import SemanticIds
    from longrec.semantic_ids.tokenizer import Tokenizer

_LISTED = 100
"""Number of items above a capacity that the facts name."""


def tokenize(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    into: str | Path | None = None,
    append: str | Path | None = None,
    quiet: bool = False,
) -> SemanticIds:
    """Learn semantic IDs of items from their vectors, and write their codes and the tokenizer into a folder.

    The folder has ``items.parquet``, whose columns ``code_1``, ``code_2`` and so on join an item table,
    ``tokenizer.safetensors`` and ``semantic_ids.json``.

    Args:
        config: YAML file with the sections vectors, method, capacity, events and seed, or a mapping of them.
        overrides: settings such as ``method.size=512``.
        into: new folder.
        append: folder of earlier semantic IDs. Items of ``vectors`` that it lacks get codes of its tokenizer, as one
            more version. The codes of the others do not change.
        quiet: print no progress.

    Raises:
        ConfigError: settings with faults. All are listed.
        DataError: vectors, weights or events that cannot be used.
        RunError: the new folder exists, or the folder to append to is damaged.
    """
    from longrec.config import apply_overrides
    from longrec.semantic_ids.settings import read_settings
    from longrec.yaml_reader import read_yaml

    if (into is None) == (append is None):
        raise ConfigError("longrec tokenize", ["needs either a new folder (--into) or one to append to (--append)"])
    if isinstance(config, Mapping):
        content, where, base = config, "longrec tokenize", Path()
    else:
        content, where, base = read_yaml(Path(config)), str(config), Path(config).parent
    if not isinstance(content, Mapping):
        raise ConfigError(where, ["must have sections, such as vectors and method"])
    settings, tokenizer = read_settings(apply_overrides(content, overrides), where, base)
    if append is not None:
        return _append(settings, Path(append), quiet)
    assert into is not None
    return _fit(settings, tokenizer, Path(into), quiet)


def _fit(settings: TokenizeConfig, tokenizer: Tokenizer, into: Path, quiet: bool) -> SemanticIds:
    """Fit the tokenizer and write the folder."""
    from longrec.progress import Progress
    from longrec.semantic_ids.collisions import describe_collisions
    from longrec.semantic_ids.item_events import read_item_events
    from longrec.semantic_ids.stored import SemanticIds
    from longrec.semantic_ids.vectors import count_distinct, read_vectors
    from longrec.training.folder import write_atomically

    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise RunError(str(into), "it exists", "a new folder", "choose another one, or --append new items to it")
    capacity = settings.capacity
    weighting = None if capacity is None else capacity.weights
    source = read_vectors(settings.vectors, weights=None if weighting == "events" else weighting, seed=settings.seed)
    size, distinct = tokenizer.settings.size, count_distinct(source.vectors)
    if distinct < size:
        raise DataError(
            settings.vectors.run or str(settings.vectors.items),
            f"{len(source.items):,} items with {distinct:,} different vectors, for {size:,} codes of a level",
            "at least as many different vectors as codes: a code of one item alone says nothing about others",
            f"set method.size to {max(distinct // 10, 2)} or less"
            if distinct > 1
            else "give items vectors that differ",
        )
    weights, pairs, window = source.weights, None, None
    if settings.events is not None:
        window = read_item_events(settings.events, source.items, with_pairs=tokenizer.reads_pairs)
        pairs = window.pairs
        weights = window.counts if weighting == "events" else weights
    progress = Progress(tokenizer.count_steps(len(source.items)), f"tokenize with {tokenizer.name}", "steps")
    with contextlib.nullcontext() if quiet else progress:
        fitted = tokenizer.fit(
            source.vectors,
            seed=settings.seed,
            weights=weights,
            capacity=None if capacity is None else capacity.bound(),
            pairs=pairs,
            advance=None if quiet else progress.advance,
        )
    codes = fitted.codes.numpy()
    facts: dict[str, Any] = {
        "items": len(codes),
        "distinct_vectors": distinct,
        "seed": settings.seed,
        "levels": [level.to_dict() for level in fitted.levels],
        **describe_collisions(codes),
    }
    if capacity is not None:
        facts["capacity"] = capacity.model_dump(mode="json")
        report = fitted.levels[0].capacity
        clipped = [] if report is None else list(report.clipped[:_LISTED])
        facts["clipped_items"] = source.items.take(clipped).to_pylist() if clipped else []
    if window is not None:
        facts["events"] = {"events": window.events, "unknown": window.unknown, "pairs": len(window.pairs)}
    ids = SemanticIds.build(source.items, codes, tokenizer, facts, settings.vectors.item)
    with write_atomically(into) as folder:
        ids.write(folder)
        if source.text_encoder is not None:
            source.text_encoder.write(Path(folder))
    return ids


def _append(settings: TokenizeConfig, folder: Path, quiet: bool) -> SemanticIds:
    """Add the new items of the vectors to a folder."""
    import pyarrow.compute as pc
    import torch

    from longrec.semantic_ids.stored import SemanticIds
    from longrec.semantic_ids.text_encoder import TextEncoder
    from longrec.semantic_ids.vectors import read_vectors

    ids, encoder = SemanticIds.open(folder), TextEncoder.open(folder)
    if bool(settings.vectors.text) != (encoder is not None):
        raise DataError(
            "vectors",
            "text" if settings.vectors.text else "no text",
            f"vectors from where those of {folder} came: {'text' if encoder else 'no text'}",
            "codes of other vectors mean something else: write a new folder, or use the config of this one",
        )
    source = read_vectors(settings.vectors, text_encoder=encoder)
    same_kind = pc.is_in(source.items, ids.items) if source.items.type == ids.items.type else None
    if same_kind is None:
        what = f"keys of the type {source.items.type}"
        raise DataError("vectors.item", what, f"{ids.items.type}, as in {folder}")
    new = pc.invert(same_kind)
    more = ids.append(source.items.filter(new), source.vectors[torch.from_numpy(new.to_numpy(zero_copy_only=False))])
    if more is not ids:
        more.write(folder)
    elif not quiet:
        print(f"{folder}: nothing to add, since all {len(source.items):,} items have codes", file=sys.stderr)
    return more


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("config", help="YAML config with the sections vectors, method, capacity, events and seed")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override config values")
    parser.add_argument("--into", metavar="FOLDER", help="new folder, such as tokens/v1")
    about = "folder of semantic IDs whose tokenizer encodes the new items of the vectors; other codes do not change"
    parser.add_argument("--append", metavar="FOLDER", help=about)
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def run_tokenize(args: argparse.Namespace) -> None:
    """Print what the semantic IDs are like."""
    from longrec.reporting.tables import write_json

    ids = tokenize(args.config, args.overrides, into=args.into, append=args.append, quiet=args.quiet)
    if args.json != "-":
        print(f"{args.into or args.append}: {ids.to_text()}")
    if args.json:
        write_json({"version": ids.version, **ids.facts}, args.json)
