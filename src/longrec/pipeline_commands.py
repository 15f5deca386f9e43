"""Commands on a pipeline: its check, the trace of a request, and rows to train its ranker on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longrec.errors import ConfigError
from longrec.terminal_text import table


def check_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a pipeline, and the headers of its bundles.

    Raises:
        ConfigError: if the pipeline has faults. All are listed.
    """
    from longrec.pipeline.config import read_pipeline
    from longrec.serve.pipeline_checks import check_pipeline as check

    config = read_pipeline(path, overrides)
    headers = check(config, Path(path).parent, str(path))
    bundles = {}
    for key, header in headers.items():
        manifest = header.manifest
        bundles[key] = {"path": str(header.path), "kind": manifest.kind, "model": manifest.model, **manifest.counts}
    return {"pipeline": config.name, "bundles": bundles, "config": config.model_dump(mode="json", by_alias=True)}


def format_check(path: str, summary: Mapping[str, Any]) -> str:
    """Return what a pipeline without faults has, as text."""
    rows = [
        [key.removesuffix(".bundle"), one["kind"], one["model"], one["items"], one["path"]]
        for key, one in summary["bundles"].items()
    ]
    listing = table(["stage", "kind", "model", "items", "bundle"], rows)
    return f"{path}: no faults in pipeline {summary['pipeline']}\n\n{listing}"


def add_trace_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``longrec trace``."""
    parser.add_argument("pipeline", help="YAML file of a pipeline")
    parser.add_argument("--user", required=True, metavar="KEY", help="key of the user, as in the log")
    parser.add_argument("--at", metavar="TIME", help="timestamp of the request, as in the log (default: now)")
    parser.add_argument("--k", type=int, default=10, metavar="N", help="number of items (default: 10)")
    parser.add_argument("--item", metavar="KEY", help="show what each stage did with this item instead")
    context = "value of a column of the context, as YAML; other columns are null"
    parser.add_argument("--context", action="append", default=[], metavar="COLUMN=VALUE", help=context)
    seed = "seed of a logged answer of a pipeline that explores, whose draws are repeated (default: new draws)"
    parser.add_argument("--seed", type=int, metavar="N", help=seed)
    parser.add_argument("--picture", metavar="FILE", help="also draw the stages with their items and times, as SVG")


def trace(args: argparse.Namespace) -> None:
    """Print how every item of a page got there."""
    from longrec.config import apply_overrides
    from longrec.pipeline.trace_picture import draw
    from longrec.reporting.tables import write_json
    from longrec.serve.local_pipeline import open_pipeline

    with open_pipeline(args.pipeline) as pipeline:
        bundle = pipeline.bundle
        written = apply_overrides({}, args.context)
        user = _read_key(args.user, bundle.users.keys.numeric, "--user")
        item = None if args.item is None else _read_key(args.item, bundle.items.keys.numeric, "--item")
        at: Any = int(args.at) if args.at is not None and args.at.lstrip("-").isdecimal() else args.at
        context = {**dict.fromkeys(pipeline.context), **written}
        result = pipeline.trace(user, args.k, at, context, allow_unknown=True, seed=args.seed)
    text = result.format() if item is None else result.format_item(item)
    if args.picture is not None:
        Path(args.picture).write_text(draw(result), encoding="utf-8")
        text += f"\n\n{args.picture}"
    if args.json != "-":
        print(text)
    if args.json:
        steps = {} if item is None else {"item": item, "steps": result.find(item)}
        write_json({**result.to_dict(), **steps}, args.json)


def add_candidate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``longrec candidates``."""
    parser.add_argument("pipeline", help="YAML file of a pipeline")
    about = "run folder whose prepared log has the requests, one per positive row of the split"
    parser.add_argument("--requests", required=True, metavar="RUN", help=about)
    split = "split of the requests, later than the training of the sources (default: valid)"
    parser.add_argument("--split", choices=["train", "valid", "test"], default="valid", help=split)
    parser.add_argument("--into", required=True, metavar="FILE", help="Parquet file to write")
    parser.add_argument("--rows", type=int, metavar="N", help="number of requests, drawn once (default: all)")
    negatives = "number of candidates without a hit to keep per request, drawn at random (default: all)"
    parser.add_argument("--negatives", type=int, metavar="N", help=negatives)
    before = "the ranker to train, whose candidates are written (default: rank)"
    parser.add_argument("--before", choices=["rank", "prerank"], default="rank", help=before)
    valid = "share of the requests, the newest, in split valid of the file (default: 0.2)"
    parser.add_argument("--valid", type=float, default=0.2, metavar="SHARE", help=valid)
    events = "also write the events of the log, so that the file is a whole log with all histories"
    parser.add_argument("--with-events", action="store_true", help=events)
    parser.add_argument("--without-hit", action="store_true", help="also write requests whose item is not in the list")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def candidates(args: argparse.Namespace) -> None:
    """Write the candidates of a pipeline, and print how many there are."""
    from longrec.evaluation.candidate_log import write_candidates
    from longrec.reporting.tables import write_json

    report = write_candidates(
        args.pipeline,
        args.requests,
        args.into,
        split=args.split,
        count=args.rows,
        negatives=args.negatives,
        before=args.before,
        valid=args.valid,
        with_events=args.with_events,
        without_hit=args.without_hit,
        seed=args.seed,
        quiet=args.quiet,
    )
    if args.json != "-":
        print(report.format())
    if args.json:
        write_json(report.to_dict(), args.json)


def _read_key(text: str, numeric: bool, option: str) -> int | str:
    if not numeric:
        return text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"longrec trace {option}", [f"{text!r}: the keys of the log are whole numbers"]) from None
