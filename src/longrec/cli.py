"""Command line ``longrec``: one function per command, no logic.

Exit code 0 on success, 2 for an error that the user can repair (with a message), 130 after an interrupt, 141 when the
reader of the output has closed it, and 1 for an error of LongRec itself, whose trace goes to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrec import __version__, commands, imports
from longrec.errors import ConfigError, LongRecError
from longrec.former_names import refuse_former_names
from longrec.reporting import tables
from longrec.resources import resource_error

# Names that versions up to 0.4 had: commands, and the options of each command.
# Parameters of a synthetic dataset that have an option of their own.
_DATASET_OPTIONS = ("users", "fields", "signal")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    try:
        args = _parse_arguments(sys.argv[1:] if arguments is None else arguments)
        args.function(args)
        sys.stdout.flush()  # here, and not at the end of the interpreter, where no handler would catch an error
    except LongRecError as error:
        return _print_error(error)
    except KeyboardInterrupt:
        print("longrec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _close_output()
    except Exception as error:  # noqa: BLE001 - the last handler of the command line: prints, keeps a file, exits 1
        ordinary = resource_error(error)
        return _report_internal_error(error) if ordinary is None else _print_error(ordinary)
    return 0


def _print_error(error: LongRecError) -> int:
    print(f"longrec: {type(error).__name__}: {error}", file=sys.stderr)
    return 2


def _close_output() -> int:
    """End silently after the reader of the output has closed it (``longrec models | head``), as other commands do."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file has no output left to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command with its options. Settings may also follow options, where argparse does not accept them."""
    parser = build_parser()
    if not arguments:
        return argparse.Namespace(function=lambda _: print(parser.format_help(), end=""))
    refuse_former_names(arguments)
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
    top = argparse.ArgumentParser(prog="longrec", description="Recommendation from long user histories.")
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

    add_config(add("check", _check, "report all errors of a config; reads the headers of files and no rows"))
    add_config(add("prepare", _prepare, "sort the log by user and time, build vocabularies and encode features"))
    parser = add_config(add("train", _train, "train a model and evaluate it"), optional=True)
    parser.add_argument("--resume", metavar="RUN", help="run folder of an interrupted run to continue")
    _add_device(parser, "replaces fit.device, also of a resumed run")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser = add("import", _import, "turn an EasyRec configuration into a config, a schema and notes on differences")
    parser.add_argument("config", help="EasyRec configuration (.config, .pbtxt), or an fg.json")
    parser.add_argument("--into", required=True, metavar="FOLDER", help="folder for config.yaml, schema.yaml, NOTES.md")
    parser.add_argument("--user", metavar="COLUMN", help="column of the user; default: chosen by its name")
    parser.add_argument("--item", metavar="COLUMN", help="column of the item; default: chosen by its name")
    parser = add(
        "compress",
        _compress,
        "store one vector (token) per impression, computed by a source model, trained block by block by default",
    )
    parser.add_argument("run", help="run folder or config of a source model, such as iat")
    _add_device(parser)
    parser.add_argument("--into", required=True, metavar="STORE", help="new folder such as tokens/v1, or redis:// URL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings: mode, every, codec, ...")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser = add("encode", _encode, "train a KEEP extractor block by block and store its user and item vectors")
    parser.add_argument("run", help="run folder or config of an extractor (model keep)")
    _add_device(parser)
    parser.add_argument("--into", required=True, metavar="FOLDER", help="new folder, such as knowledge/v1")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings: every, learn, codec, ...")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    run_help = "run folder, such as runs/shop-din"
    parser = add("evaluate", _evaluate, "compute all metrics of a run with confidence intervals")
    parser.add_argument("run", help=run_help)
    _add_split(parser)
    _add_device(parser)
    parser = add("predict", _predict, "score all samples (rows with a label) of a split and write a Parquet file")
    parser.add_argument("run", help=run_help)
    _add_split(parser)
    _add_device(parser)
    parser.add_argument("--into", metavar="FILE", help="file for the scores (default: inside the run)")
    parser = add("compare", _compare, "compare runs on the same rows; the first is the baseline")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    _add_split(parser)
    parser.add_argument("--resample", choices=["user", "row"], default="user", help="unit that the bootstrap draws")
    parser.add_argument("--n-resamples", type=int, default=300, metavar="N", help="number of bootstrap draws")
    parser = add(
        "export",
        _export,
        "export a run (or the source model of a token store) as a serving bundle, and verify that its scores match",
    )
    parser.add_argument("run", help="run folder, or folder of a token store whose source model is exported")
    parser.add_argument("bundle", help="folder of the new bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser = add("serve", _serve, "serve a bundle over HTTP", json=False)
    parser.add_argument("bundle", help="folder that export has written")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    live = "token store (folder or redis:// URL) to read live instead of the copy in the bundle"
    parser.add_argument("--tokens", action="append", default=[], metavar="HISTORY=LOCATION", help=live)
    events = "accept posted events, and encode each into a token with the source model in this bundle"
    parser.add_argument("--events", metavar="SOURCE.bundle", help=events)
    parser.add_argument("--state", metavar="FOLDER", help="folder for the received events (default: BUNDLE.state)")
    recall = "rank the items that the retriever in this bundle retrieves, at /recommend"
    parser.add_argument("--recall", metavar="RETRIEVER.bundle", help=recall)
    add("models", _models, "list all models: name, kind, paper, and use of histories")
    parser = add("help", _help, "explain a model and its settings", json=False)
    parser.add_argument("name", help="model, such as din")
    parser = add("cite", _cite, "print the BibTeX entries of a model, or of all models used by a config or a run")
    parser.add_argument("source", help="model, config (YAML or EasyRec), run folder, or folder of a token store")
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override config values")
    parser = add(
        "synthetic", _synthetic, "list, describe or generate synthetic datasets with known label probabilities"
    )
    parser.add_argument("name", nargs="?", help="synthetic dataset; default: list all")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="parameters of the dataset; without --into they are described"
    )
    parser.add_argument("--into", metavar="FOLDER", help="folder for the dataset")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed and parameters generate the same dataset"
    )
    for parameter in _DATASET_OPTIONS:
        value = parameter.upper()
        parser.add_argument(f"--{parameter}", metavar=value, help=f"same as {parameter}={value}")
    parser = add(
        "demo", _demo, "run a demo on MovieLens-1M: prepare, train two models, compare, export, serve", json=False
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


def _write_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print a result as text, and write it as JSON with ``--json``, which alone is printed with ``--json -``."""
    if args.json != "-":
        print(text)
    if args.json:
        tables.write_json(result, args.json)


def _split_overrides(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return config and overrides. An argument with ``=`` in the position of the config is an override."""
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        return None, [args.config, *args.overrides]
    return args.config, args.overrides


def _check(args: argparse.Namespace) -> None:
    summary = commands.check(args.config, args.overrides)
    histories = ", ".join(f"{name} ({', '.join(of)})" for name, of in summary["histories"].items()) or "none"
    text = f"{args.config}: no faults\n  model      {summary['model']}\n  log        {summary['log']}\n"
    text += f"  features   {', '.join(summary['features'])}\n  histories  {histories}"
    _write_result(args, summary, "\n".join([text, *summary["notes"], *tables.warning_lines(summary["warnings"])]))


def _prepare(args: argparse.Namespace) -> None:
    manifest = commands.prepare(args.config, args.overrides)
    spans = manifest.get("spans", {})
    rows = [
        [
            split,
            count["samples"],
            count["positives"] / max(count["samples"], 1),
            *(spans.get(split, ["", ""]) if spans else ()),
        ]
        for split, count in manifest["parts"].items()
    ]
    text = f"{manifest['events']:,} events, {manifest['users']:,} users, {manifest['items']:,} items, "
    text += f"in {manifest['seconds']} s\n"
    text += tables.table(["split", "samples", "positive rate", *(["from", "to"] if spans else [])], rows)
    for name, share in manifest["hash_collisions"].items():
        text += f"\nfeature {name}: about {share:.1%} of its values share a hash bucket with another value"
    lines = [*manifest["notes"], *tables.left_out_lines(manifest["left_out"])]
    lines += tables.warning_lines(manifest["warnings"])
    _write_result(args, manifest, "\n".join([text, *lines, manifest["folder"]]))


def _train(args: argparse.Namespace) -> None:
    config, overrides = _split_overrides(args)
    if config is not None:
        # Before training, while it can still be stopped. The run keeps them too (NOTES.md).
        for line in imports.read_job_source(config, overrides).notes:
            print(line, file=sys.stderr if args.json == "-" else sys.stdout, flush=True)
    run = commands.train(config, overrides, resume=args.resume, device=args.device, quiet=args.quiet)
    text = f"{tables.results_table(run.name, run.results)}\n{run.folder}"
    _write_result(args, {**run.results, "run": str(run.folder)}, text)


def _import(args: argparse.Namespace) -> None:
    result = imports.import_config(args.config, args.into, user=args.user, item=args.item)
    notes = [
        f"{one['fate']}: {args.config}:{one['line']}:{one['column']}: {one['field']}: {one['words']}"
        for one in result["notes"]
    ]
    _write_result(args, result, "\n".join([*notes, *result["choices"], "", *result["files"]]))


def _compress(args: argparse.Namespace) -> None:
    report = commands.compress(args.run, args.into, args.overrides, device=args.device, quiet=args.quiet)
    warning = f"\nthese tokens leak: they were {report.leak}" if report.leak else ""
    _write_report(args, report, "impressions", warning)


def _encode(args: argparse.Namespace) -> None:
    report = commands.encode(args.run, args.into, args.overrides, device=args.device, quiet=args.quiet)
    _write_report(args, report, "vectors")


def _write_report(args: argparse.Namespace, report: Any, rows_name: str, warning: str = "") -> None:
    rows = [[one["version"], one["from"], one["rows"], one["auc"]] for one in report.versions]
    text = tables.table(["version", "writes from", rows_name, "AUC before learning"], rows)
    text += f"\n{report.tokens:,} vectors in {report.into}\nread them in a schema: {report.hint}{warning}"
    _write_result(args, vars(report), text)


def _evaluate(args: argparse.Namespace) -> None:
    evaluation = commands.evaluate(args.run, args.split, device=args.device)
    _write_result(args, evaluation.to_dict(), tables.results_table(evaluation.run, evaluation.to_dict()))


def _predict(args: argparse.Namespace) -> None:
    path = commands.predict(args.run, args.split, args.into, device=args.device)
    _write_result(args, {"predictions": str(path)}, str(path))


def _compare(args: argparse.Namespace) -> None:
    comparison = commands.compare(args.runs, args.split, resample=args.resample, n_resamples=args.n_resamples)
    result = comparison.to_dict()
    _write_result(args, result, tables.comparison_table(result))


def _export(args: argparse.Namespace) -> None:
    manifest = commands.export(args.run, args.bundle, overwrite=args.overwrite)
    kinds = dict.fromkeys(("ranker", "retriever"), f"serve {args.bundle}")
    kinds |= {"encoder": f"serve RANKER.bundle --events {args.bundle}"}
    _write_result(args, manifest, f"{args.bundle}\nserve it with: longrec {kinds[manifest.kind]}")


def _serve(args: argparse.Namespace) -> None:
    from longrec.serve.server import serve
    from longrec.serve.settings import build_settings

    faults = [
        f"--tokens: {item!r} is not HISTORY=LOCATION" for item in args.tokens if not all(item.partition("=")[::2])
    ]
    if args.state is not None and args.events is None:
        faults.append("--state: needs --events, the source that encodes tokens of events")
    if faults:
        raise ConfigError("longrec serve", faults)
    tokens = dict(item.split("=", 1) for item in args.tokens)
    settings = build_settings(tokens, args.events, args.state, args.recall)
    serve(args.bundle, host=args.host, port=args.port, workers=args.workers, settings=settings)


def _models(args: argparse.Namespace) -> None:
    cards = commands.models()
    rows = [[card.name, card.kind, "yes" if card.reads_history else "no", _format_paper(card)] for card in cards]
    _write_result(args, cards, tables.table(["model", "kind", "histories", "paper"], rows))


def _format_paper(card: Any) -> str:
    """Return title and year in one line."""
    return f"{card.title} ({card.year})" if card.year else card.title


def _help(args: argparse.Namespace) -> None:
    print(commands.explain_model(args.name))


def _cite(args: argparse.Namespace) -> None:
    bibliography = commands.cite(args.source, args.overrides)
    # BibTeX ignores text between entries, so the whole output can be one file of BibTeX.
    lines = [f"% {path}: {', '.join(names)}" for path, names in bibliography.models.items()]
    lines += [f"% {path} is not cited: {reason}" for path, reason in bibliography.unread.items()]
    _write_result(args, bibliography, "\n".join([*lines, *(f"\n{entry.bibtex}" for entry in bibliography.entries)]))


def _synthetic(args: argparse.Namespace) -> None:
    if args.name is None:
        datasets = [commands.explain_synthetic(name) for name in commands.synthetic_datasets()]
        text = "\n\n".join(f"{one['dataset']}\n{_wrap_text(one['story'])}" for one in datasets)
        _write_result(args, datasets, text)
        return
    options = [f"{name}={value}" for name in _DATASET_OPTIONS if (value := getattr(args, name)) is not None]
    overrides = [*args.overrides, *options]
    if args.into is None:
        if overrides:
            raise ConfigError("longrec synthetic", ["--into: is required with parameters: the folder of the dataset"])
        dataset = commands.explain_synthetic(args.name)
        rows = [[name, str(one["default"]), one["about"]] for name, one in dataset["parameters"].items()]
        table = tables.table(["parameter", "default", "meaning"], rows)
        _write_result(args, dataset, f"{_wrap_text(dataset['story'])}\n\n{table}")
        return
    result = commands.make_synthetic(args.name, args.into, overrides, seed=args.seed)
    text = f"{result['events']:,} events of {result['users']:,} users in {result['folder']}\n"
    text += _wrap_text(", ".join(result["files"]))
    head = f"true probability, on {result['test_rows']:,} test rows"
    text += f"\n\n{tables.table([head, 'AUC'], list(result['bayes_auc'].items()))}\n\ncontinue with"
    jobs = [name for name in result["files"] if name.endswith(".yaml") and not name.endswith(".schema.yaml")]
    _write_result(args, result, text + "".join(f"\n  longrec train {Path(args.into) / job}" for job in jobs))


def _wrap_text(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ")


def _demo(args: argparse.Namespace) -> None:
    from longrec.demo import demo

    demo(args.folder)


if __name__ == "__main__":
    sys.exit(main())
