"""Command ``longrec bench lengths``: quality and cost of models by the length of histories."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError

if TYPE_CHECKING:
    from longrec.imports import Config
    from longrec.lengths.measured_lengths import MeasuredLengths

RESULTS, PICTURE = "lengths.json", "lengths.svg"
"""Files of the folder of results."""


def measure_lengths(
    source: Config,
    overrides: Sequence[str] = (),
    *,
    models: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
    into: str | Path,
    quiet: bool = False,
) -> MeasuredLengths:
    """Train models with histories cut at several lengths, and measure quality and cost of each.

    The folder ``into`` gets ``lengths.json``, ``lengths.svg`` and the runs.

    Args:
        source: path of a config, or the config itself.
        overrides: settings such as ``fit.max_steps=200``, of every training.
        models: names of models. The one of the config has its settings there, others have their defaults. Default:
            that of the config.
        lengths: maximum lengths of all histories. Default: 50, 100, 200, 500 and so on, up to the longest
            ``max_length`` of the schema. For a length beyond the longest history of the log only the cost is measured.
        quiet: print no progress.

    Raises:
        ConfigError: a config or a model that cannot be measured.
        RunError: the folder exists and is not empty.
    """
    from longrec.imports import read_job_source
    from longrec.lengths.length_chart import draw_lengths
    from longrec.lengths.length_study import LengthStudy
    from longrec.reporting.tables import write_atomically, write_json

    job_source = read_job_source(source, overrides)
    folder = Path(into)
    with job_source.error_context:
        study = LengthStudy(job_source.config, overrides, models, lengths, folder, quiet)
        measured = study.run()
    write_json(measured, folder / RESULTS)
    write_atomically(folder / PICTURE, draw_lengths(measured))
    return measured


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("study", choices=["lengths"], help="lengths: quality and cost by the length of histories")
    parser.add_argument("config", help="YAML config, or EasyRec config (.config), of a ranker that reads a history")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override config values")
    lengths = "maximum lengths of the histories, such as 50,200,1000; default: round ones up to max_length"
    parser.add_argument("--lengths", type=_read_lengths, metavar="N,N", help=lengths)
    models = "models to measure, such as din,sim; those that the config does not name have default settings"
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,NAME", help=models)
    parser.add_argument("--steps", type=int, metavar="N", help="same as fit.max_steps=N")
    parser.add_argument("--epochs", type=int, metavar="N", help="same as fit.epochs=N")
    into = "new folder for lengths.json, lengths.svg and the runs (default: lengths-CONFIG)"
    parser.add_argument("--into", metavar="FOLDER", help=into)
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def run_bench(args: argparse.Namespace) -> None:
    """Print the table, and write the files."""
    from longrec.reporting.tables import write_json

    named: Mapping[str, Any] = {"fit.max_steps": args.steps, "fit.epochs": args.epochs}
    overrides = [*args.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]
    into = Path(args.into or f"lengths-{Path(args.config).stem}")
    measured = measure_lengths(
        args.config, overrides, models=args.models, lengths=args.lengths, into=into, quiet=args.quiet
    )
    if args.json != "-":
        print(f"{measured.to_text()}\n\nwritten: {into / RESULTS}, {into / PICTURE}")
    if args.json:
        write_json(measured, args.json)


def _read_lengths(text: str) -> list[int]:
    with contextlib.suppress(ValueError):
        return [int(number.replace("_", "")) for number in text.split(",")]
    raise ConfigError("longrec bench lengths", [f"--lengths: must be whole numbers such as 50,200,1000, got {text!r}"])
