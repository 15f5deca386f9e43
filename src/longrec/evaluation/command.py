"""Command line of the evaluation of pipelines: ``longrec evaluate PIPELINE.yaml``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError

if TYPE_CHECKING:
    from longrec.evaluation.results import PipelineEvaluation

_SUFFIXES = (".yaml", ".yml")
_OPTIONS = ("requests", "rows", "k", "targets", "vectors", "into")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate`` that belong to a pipeline."""
    about = "run folder whose prepared log has the requests of a pipeline"
    parser.add_argument("--requests", metavar="RUN", help=about)
    rows = "number of requests of a pipeline, drawn once (default: 2000; 0 for all)"
    parser.add_argument("--rows", type=int, metavar="N", help=rows)
    parser.add_argument("--k", type=int, metavar="N", help="items of the page of a pipeline (default: evaluate.k)")
    relevant = "relevant items of a pipeline: that of each positive row, or all later ones of a user (default: next)"
    parser.add_argument("--targets", choices=["next", "later"], help=relevant)
    parser.add_argument(
        "--vectors", metavar="SOURCE", help="source of a pipeline whose item vectors diversity compares"
    )
    into = "folder for the results of a pipeline (default: NAME.evaluation beside its file)"
    parser.add_argument("--into", metavar="FOLDER", help=into)


def is_pipeline(target: str) -> bool:
    """Return True if the target of ``evaluate`` is a file, which a pipeline is and a run is not."""
    path = Path(target)
    return path.suffix in _SUFFIXES and not path.is_dir()


def check_options(args: argparse.Namespace) -> None:
    """Raise a ConfigError for options of a pipeline with a run, and for those of a run with a pipeline."""
    if not is_pipeline(args.run):
        faults = [
            f"--{name}: is for a pipeline; name its YAML file" for name in _OPTIONS if getattr(args, name) is not None
        ]
    else:
        _check_file(args.run)
        used = [name for name in ("log", "users", "items", "device") if getattr(args, name) is not None]
        faults = [f"--{name}: is for a run; a pipeline answers the requests of --requests" for name in used]
        if args.requests is None:
            faults.append("--requests: is required for a pipeline: the run folder whose prepared log has the requests")
        if args.rows is not None and args.rows < 0:
            faults.append(f"--rows: must be 0 or more, got {args.rows}")
        if args.k is not None and args.k < 1:
            faults.append(f"--k: must be at least 1, got {args.k}")
    if faults:
        raise ConfigError("longrec evaluate", faults)


def _check_file(path: str) -> None:
    """Raise a ConfigError for a file that is no pipeline, such as the config of a training."""
    from longrec.pipeline.config import is_pipeline as has_sources
    from longrec.yaml_reader import read_yaml

    if not has_sources(read_yaml(path)):
        do = "evaluate the folder of its run, such as runs/shop-din"
        raise ConfigError(path, [f"is no pipeline: it has no section recall; {do}"])


def find_folder(target: str | Path) -> Path:
    """Return the folder of the evaluation of a pipeline: beside its file, or the folder itself."""
    path = Path(target)
    return path.with_suffix(".evaluation") if is_pipeline(str(target)) else path


def are_pipelines(targets: Sequence[str]) -> bool:
    """Return True if the first target of ``compare`` is a pipeline, or the folder of an evaluation of one."""
    files = [find_folder(targets[0]) / name for name in ("results.json", "table.txt")]
    return is_pipeline(targets[0]) or all(file.is_file() for file in files)


def compare(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Compare evaluations of pipelines, and return the result with its text.

    Raises:
        ConfigError: options of runs.
    """
    from longrec.evaluation.compare import compare_pipelines
    from longrec.reporting.tables import comparison_table

    faults = [f"--{name}: is for runs" for name in ("log", "users", "items", "common") if getattr(args, name)]
    if args.resample != "user":
        faults.append("--resample row: pages are compared over users")
    if faults:
        raise ConfigError("longrec compare", faults)
    folders = [find_folder(target) for target in args.runs]
    result = compare_pipelines(folders, n_resamples=args.n_resamples).to_dict()
    return result, comparison_table(result)


def evaluate(args: argparse.Namespace) -> tuple[PipelineEvaluation, Path]:
    """Evaluate a pipeline, and write its folder."""
    from longrec.evaluation.pipeline_evaluation import ROWS, evaluate_pipeline

    result = evaluate_pipeline(
        args.run,
        args.requests,
        args.split,
        k=args.k,
        count=ROWS if args.rows is None else args.rows or None,
        targets=args.targets or "next",
        vectors=args.vectors,
    )
    return result, result.save(args.into or find_folder(args.run))
