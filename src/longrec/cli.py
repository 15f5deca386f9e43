"""Command line ``longrec``: its commands with their options, and exit codes.

Exit code 0 on success, 2 for an error that the user can repair (with a message), 130 after Ctrl-C, 143 after SIGTERM in
a training, 141 when the reader of the output has closed it, and 1 for an error of LongRec itself, whose trace goes to a
file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from longrec import (
    __version__,
    audits,
    command_output,
    diagnose_command,
    help_pages,
    length_command,
    off_policy_command,
    tokenize_command,
)
from longrec.errors import LongRecError, StoppedRun, UnknownName
from longrec.evaluation.command import add_options as add_pipeline_options
from longrec.former_names import refuse_former_names
from longrec.new_row_options import add_common_rows, add_new_rows
from longrec.pipeline_commands import add_candidate_options, add_trace_options
from longrec.resources import resource_error


def main(arguments: Sequence[str] | None = None, *, is_interrupted: Callable[[], bool] = lambda: False) -> int:
    """Run one command.

    Args:
        arguments: the command line, by default that of the process.
        is_interrupted: returns True after Ctrl-C. Libraries turn it into errors of their own, which then count as it.

    Returns:
        The exit code.
    """
    try:
        args = _parse_arguments(sys.argv[1:] if arguments is None else arguments)
        args.function(args)
        sys.stdout.flush()  # here, and not at the end of the interpreter, where no handler would catch an error
    except KeyboardInterrupt:
        return _print_interrupt()
    except BrokenPipeError:
        return _close_output()
    except Exception as error:  # noqa: BLE001 - the last handler of the command line: prints, keeps a file, exits 1
        if is_interrupted():
            return _print_interrupt()
        if isinstance(error, StoppedRun):
            return _print_error(error, 128 + error.number)
        if isinstance(error, LongRecError):
            return _print_error(error)
        ordinary = resource_error(error)
        return _report_internal_error(error) if ordinary is None else _print_error(ordinary)
    return 0


def _print_interrupt() -> int:
    print("longrec: interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


def _print_error(error: LongRecError, code: int = 2) -> int:
    print(f"longrec: {type(error).__name__}: {error}", file=sys.stderr)
    return code


def _close_output() -> int:
    """End silently after the reader of the output has closed it (``longrec models | head``), as other commands do."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file has no output left to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command with its options. Settings may also follow options, where argparse does not accept them."""
    if not arguments:
        return argparse.Namespace(function=lambda _: print(help_pages.format_overview()))
    refuse_former_names(arguments)
    commands = [command for group in help_pages.GROUPS.values() for command in group]
    if not arguments[0].startswith("-") and arguments[0] not in commands:
        raise UnknownName("command", arguments[0], commands)
    parser = build_parser()
    try:
        args, rest = parser.parse_known_args(arguments)
    except SystemExit:
        sys.stdout.flush()
        raise
    if rest and (not hasattr(args, "overrides") or any("=" not in item or item.startswith("-") for item in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _report_internal_error(error: Exception) -> int:
    print(f"longrec: an error of LongRec itself: {type(error).__name__}: {error}", file=sys.stderr)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="longrec-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:  # no space for a file: the trace must not be lost
        traceback.print_exception(error)
        return 1
    print(f"  The full trace is in {file.name}; please report it.", file=sys.stderr)
    return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    epilog = "longrec help TOPIC explains a command, a key of a config (fit.lr) or a model (din)."
    top = argparse.ArgumentParser(prog="longrec", description="Recommendation from long user histories.", epilog=epilog)
    top.add_argument("--version", action="version", version=f"longrec {__version__}")
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, description: str, *, json: bool = True) -> argparse.ArgumentParser:
        parser = subparsers.add_parser(name, help=description, description=description)
        parser.set_defaults(function=function)
        if json:
            parser.add_argument("--json", metavar="FILE", help="also write the result as JSON; - is standard output")
        return parser

    def add_config(parser: argparse.ArgumentParser, *, optional: bool = False) -> argparse.ArgumentParser:
        parser.add_argument("config", nargs="?" if optional else None, help="YAML config, or EasyRec config (.config)")
        parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override config values")
        return parser

    add_config(
        add(
            "check",
            command_output.check,
            "report all errors of a config or pipeline; reads the headers of files and no rows",
        )
    )
    add_config(
        add("prepare", command_output.prepare, "sort the log by user and time, build vocabularies and encode features")
    )
    parser = add_config(add("train", command_output.train, "train a model and evaluate it"), optional=True)
    parser.add_argument("--resume", metavar="RUN", help="run folder of an interrupted run to continue")
    _add_device(parser, "replaces fit.device, also of a resumed run")
    parser.add_argument("--no-report", action="store_true", help="write no HTML report into the run folder")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    audits.add_options(
        add("audit", audits.run_audit, "audit a log for faults that make published results wrong: ties, order, leaks")
    )
    parser = add(
        "import",
        command_output.import_config,
        "turn an EasyRec configuration into a config, a schema and notes on differences",
    )
    parser.add_argument("config", help="EasyRec configuration (.config, .pbtxt), or an fg.json")
    parser.add_argument("--into", required=True, metavar="FOLDER", help="folder for config.yaml, schema.yaml, NOTES.md")
    parser.add_argument("--user", metavar="COLUMN", help="column of the user; default: chosen by its name")
    parser.add_argument("--item", metavar="COLUMN", help="column of the item; default: chosen by its name")
    parser = add(
        "compress",
        command_output.compress,
        "store one vector (token) per impression, computed by a source model, trained block by block by default",
    )
    parser.add_argument("run", help="run folder or config of a source model, such as iat")
    _add_device(parser)
    parser.add_argument("--into", required=True, metavar="STORE", help="new folder such as tokens/v1, or redis:// URL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings: mode, every, codec, ...")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser = add(
        "encode", command_output.encode, "train a KEEP extractor block by block and store its user and item vectors"
    )
    parser.add_argument("run", help="run folder or config of an extractor (model keep)")
    _add_device(parser)
    parser.add_argument("--into", required=True, metavar="FOLDER", help="new folder, such as knowledge/v1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings: every, learn, codec, ...")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    about = "learn semantic IDs of items from their vectors: a tuple of codes for each, which joins the item table"
    tokenize_command.add_options(add("tokenize", tokenize_command.run_tokenize, about))
    run_help = "run folder, such as runs/shop-din"
    about = "compute all metrics of a run, or of every stage of a pipeline, with confidence intervals"
    parser = add("evaluate", command_output.evaluate, about)
    parser.add_argument("run", help=f"{run_help}; or the YAML file of a pipeline")
    _add_split(parser)
    add_new_rows(parser)
    _add_device(parser)
    add_pipeline_options(parser)
    parser = add(
        "predict",
        command_output.predict,
        "score the labeled rows of a split, or all rows of a new log, as a Parquet file",
    )
    parser.add_argument("run", help=run_help)
    _add_split(parser)
    add_new_rows(parser, candidates=True)
    _add_device(parser)
    parser.add_argument("--into", metavar="FILE", help="file for the scores (default: inside the run)")
    parser = add("compare", command_output.compare, "compare runs on the same rows; the first is the baseline")
    compared = "run folders; or files of pipelines that evaluate has measured, or the folders of their results"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=compared)
    _add_split(parser)
    parser.add_argument("--resample", choices=["user", "row"], default="user", help="unit that the bootstrap draws")
    parser.add_argument("--n-resamples", type=int, default=300, metavar="N", help="number of bootstrap draws")
    parser.add_argument("--no-report", action="store_true", help="write no HTML report")
    add_common_rows(parser)
    about = "estimate what another policy would have earned, from a log of random draws with their propensities"
    off_policy_command.add_options(add("offpolicy", off_policy_command.run_off_policy, about))
    parser = add("report", command_output.report, "write an HTML report of a run, or of several side by side")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; the first is the baseline")
    parser.add_argument("--into", metavar="FILE", help="the file (default: report.html in the run folder)")
    length_command.add_options(
        add("bench", length_command.run_bench, "train models with histories cut at several lengths: quality and cost")
    )
    about = "write a page about semantic IDs: what is wrong with the codes of a tokenizer, and what to change"
    diagnose_command.add_options(add("diagnose", diagnose_command.run_diagnose, about))
    parser = add(
        "export",
        command_output.export,
        "export a run (or the source model of a token store) as a serving bundle, and verify that its scores match",
    )
    parser.add_argument("run", help="run folder, or folder of a token store whose source model is exported")
    parser.add_argument("bundle", help="folder of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    index = (
        "search for the items of a retriever: exact, ivf (faiss), or auto, exact up to 200,000 items (default: auto)"
    )
    parser.add_argument("--index", choices=["auto", "exact", "ivf"], default="auto", help=index)
    target = "share of the best items that an approximate search must return (default: 0.98)"
    parser.add_argument("--recall-target", type=float, default=0.98, metavar="SHARE", help=target)
    parser.add_argument("--recall-at", type=int, default=100, metavar="K", help="number of best items (default: 100)")
    about = (
        "also export how an event updates the state of a user, which serve --events then keeps (hpmn, hstu, mimn, sdim)"
    )
    parser.add_argument("--states", action="store_true", help=about)
    about = "also export an explorer of a ranker, for the section explore of a pipeline: name=age strength=0.002"
    parser.add_argument("--explore", nargs="+", metavar="KEY=VALUE", help=about)
    parser = add("catalog", command_output.catalog, "add, withdraw and change items of a bundle without a new export")
    parser.add_argument("bundle", help="folder that export has written")
    parser.add_argument("changes", help="changes as JSON lines or Parquet: key of the item, raw columns, withdrawn")
    about = "write the events that a server recorded as rows of the log, for the next prepare"
    parser = add("events", command_output.events, about)
    parser.add_argument("state", help="folder or redis:// URL of the state, as serve --state has it")
    parser.add_argument("--output", required=True, metavar="FILE", help="the Parquet file")
    about = "fold the events of all users into their states, before serve --events is started"
    parser = add("warm", command_output.warm, about)
    parser.add_argument("bundle", help="folder that export --states has written")
    parser.add_argument("--state", help="folder or redis:// URL of the state, as serve --state has it")
    since = "timestamp from which requests can use the states, in milliseconds UTC or steps (default: now)"
    parser.add_argument("--at", type=int, metavar="TIME", help=since)
    rows = "record the events of this log first (Parquet, CSV, JSON lines, Arrow; a file or a glob), as /events would"
    parser.add_argument("--log", metavar="FILE", help=rows)
    parser.add_argument("--allow-unknown", action="store_true", help="of the log: accept items that the bundle lacks")
    rows = "of the log: the Parquet file of the rows that are no valid events (default: BUNDLE.refused.parquet)"
    parser.add_argument("--refused", metavar="FILE", help=rows)
    about = "record the events of a Redis or Valkey stream, each exactly once, and fold the states of their users"
    parser = add("stream", command_output.stream, about)
    parser.add_argument("bundle", help="folder that export has written, or YAML file of a pipeline")
    entries = "the stream, as redis://host:port/db/name; field event of an entry is the JSON that POST /events takes"
    parser.add_argument("--from", dest="source", required=True, metavar="STREAM", help=entries)
    parser.add_argument("--state", help="folder or redis:// URL of the state, as serve --state has it")
    parser.add_argument("--group", default="longrec", help="consumer group of the stream (default: longrec)")
    consumer = "name of the worker; one of another name waits until this one has ended (default: worker)"
    parser.add_argument("--consumer", default="worker", metavar="NAME", help=consumer)
    size = "largest number of entries that are recorded at once (default: 2000)"
    parser.add_argument("--batch", type=int, default=2_000, metavar="N", help=size)
    parser.add_argument("--until-empty", action="store_true", help="end when there are no more entries")
    parser = add("serve", command_output.serve, "serve a bundle or a pipeline over HTTP", json=False)
    parser.add_argument("bundle", help="folder that export has written, or YAML file of a pipeline")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    queue = "requests that may wait for the model of a process; further ones get status 503 (default: 16)"
    parser.add_argument("--queue", type=int, default=16, metavar="N", help=queue)
    deadline = "seconds that a request may wait before it is refused (default: 10)"
    parser.add_argument("--deadline", type=float, default=10.0, metavar="SECONDS", help=deadline)
    connections = "open connections of a process; further ones get status 503 (default: 2048)"
    parser.add_argument("--connections", type=int, default=2_048, metavar="N", help=connections)
    live = "token store (folder or redis:// URL) to read live instead of the copy in the bundle"
    parser.add_argument("--tokens", action="append", default=[], metavar="HISTORY=LOCATION", help=live)
    events = "accept posted events: add them to histories, and encode each as a token with the source model, if given"
    parser.add_argument("--events", nargs="?", const=True, metavar="SOURCE.bundle", help=events)
    parser.add_argument("--state", metavar="FOLDER", help="folder for the received events (default: BUNDLE.state)")
    recall = "rank the items that the retriever in this bundle retrieves, at /recommend"
    parser.add_argument("--recall", metavar="RETRIEVER.bundle", help=recall)
    keys = "file of API keys, one per line as KEY or admin KEY; else those of LONGREC_API_KEYS, if it is set"
    parser.add_argument("--api-keys", metavar="FILE", help=keys)
    names = "further names of this server in the header Host, or * for all (default: only loopback names on loopback)"
    parser.add_argument("--allowed-hosts", nargs="+", default=[], metavar="NAME", help=names)
    no_copy = "read bundles in place: a file that is changed meanwhile changes answers, or ends the server"
    parser.add_argument("--no-copy", dest="private", action="store_false", help=no_copy)
    add_trace_options(
        add("trace", command_output.trace, "show how a pipeline chooses the items of one request, stage by stage")
    )
    about = "write the candidates of a pipeline for requests of a log, as rows to train its ranker on"
    add_candidate_options(add("candidates", command_output.candidates, about))
    add("models", command_output.models, "list all models: name, kind, paper, and use of histories")
    parser = add("help", command_output.explain, "explain a command, a key of a config, or a model", json=False)
    parser.set_defaults(list_parsers=lambda: dict(subparsers.choices))
    parser.add_argument("topic", nargs="?", help="such as train, fit.lr, features, din; default: list all")
    parser = add(
        "cite", command_output.cite, "print the BibTeX entries of a model, or of all models used by a config or a run"
    )
    parser.add_argument("source", help="model, config (YAML or EasyRec), run folder, or folder of a token store")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override config values")
    parser = add(
        "synthetic",
        command_output.synthetic,
        "list, describe or generate synthetic datasets with known label probabilities",
    )
    parser.add_argument("name", nargs="?", help="synthetic dataset; default: list all")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="parameters of the dataset; without --into they are described"
    )
    parser.add_argument("--into", metavar="FOLDER", help="folder for the dataset")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed and parameters generate the same dataset"
    )
    for parameter in command_output.DATASET_OPTIONS:
        value = parameter.upper()
        parser.add_argument(f"--{parameter}", metavar=value, help=f"same as {parameter}={value}")
    parser = add(
        "demo",
        command_output.demo,
        "run a demo on MovieLens-1M: prepare, train two models, compare, export, serve",
        json=False,
    )
    parser.add_argument("--folder", default="longrec-demo", help="folder for all files")
    return top


def _add_device(parser: argparse.ArgumentParser, default: str = "default: fit.device of the run or config") -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help=f"device to compute on; {default}")


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        choices=["train", "valid", "test"],
        default="test",
        help="split whose samples are scored (default: test)",
    )


if __name__ == "__main__":
    sys.exit(main())
