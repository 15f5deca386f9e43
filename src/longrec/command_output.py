"""Output of the commands: each function calls a command with the options of the command line, and prints its result.

Each imports what it needs, so that a listing does not wait for numpy and pydantic.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longrec.errors import ConfigError
from longrec.new_row_options import read_new_rows
from longrec.terminal_text import WIDTH, table, warning_lines

DATASET_OPTIONS = ("users", "fields", "signal")
"""Parameters of a synthetic dataset that have an option of their own."""


def _write_result(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print a result as text, and write it as JSON with ``--json``, which alone is printed with ``--json -``."""
    if args.json != "-":
        print(text)
    if args.json:
        from longrec.reporting.tables import write_json

        write_json(result, args.json)


def _split_overrides(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return config and overrides. An argument with ``=`` in the position of the config is an override."""
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        return None, [args.config, *args.overrides]
    return args.config, args.overrides


def check(args: argparse.Namespace) -> None:
    """Print what a config without faults has."""
    from longrec import commands

    summary = commands.check(args.config, args.overrides)
    if "pipeline" in summary:
        from longrec.pipeline_commands import format_check

        _write_result(args, summary, format_check(args.config, summary))
        return
    histories = [f"{name} ({', '.join(of)})" for name, of in summary["histories"].items()] or ["none"]
    text = f"{args.config}: no faults\n  model      {summary['model']}\n  log        {summary['log']}\n"
    text += f"{_format_list('features', summary['features'])}\n{_format_list('histories', histories)}"
    _write_result(args, summary, "\n".join([text, *summary["notes"], *warning_lines(summary["warnings"])]))


def _format_list(title: str, names: Sequence[str]) -> str:
    """Return a list of names under a title, in lines of the terminal's width."""
    return textwrap.fill(
        ", ".join(names),
        WIDTH,
        initial_indent=f"  {title:<9}  ",
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
    )


def prepare(args: argparse.Namespace) -> None:
    """Print the facts of a prepared log."""
    from longrec import commands
    from longrec.reporting import tables
    from longrec.reporting.facts_table import facts_text

    manifest = commands.prepare(args.config, args.overrides)
    text = facts_text(manifest["facts"])
    for name, share in manifest["hash_collisions"].items():
        text += f"\nfeature {name}: about {share:.1%} of its values share a hash bucket with another value"
    lines = [*manifest["notes"], *tables.left_out_lines(manifest["left_out"])]
    lines += [*warning_lines(manifest["warnings"]), f"prepared in {manifest['seconds']} s"]
    _write_result(args, manifest, "\n".join([text, *lines, manifest["folder"]]))


def train(args: argparse.Namespace) -> None:
    """Print the results of a run."""
    from longrec import commands, imports
    from longrec.reporting import tables

    config, overrides = _split_overrides(args)
    if config is not None:
        # Before training, while it can still be stopped. The run keeps them too (NOTES.md).
        for line in imports.read_job_source(config, overrides).notes:
            print(line, file=sys.stderr if args.json == "-" else sys.stdout, flush=True)
    run = commands.train(config, overrides, resume=args.resume, device=args.device, quiet=args.quiet)
    report = None if args.no_report else commands.try_report([run])
    lines = [tables.results_table(run.name, run.results), *([f"report: {report}"] if report else []), str(run.folder)]
    _write_result(args, {**run.results, "run": str(run.folder), "report": report}, "\n".join(lines))


def report(args: argparse.Namespace) -> None:
    """Print the path of a report."""
    from longrec import commands

    path = str(commands.report(args.runs, args.into))
    _write_result(args, {"report": path}, path)


def import_config(args: argparse.Namespace) -> None:
    """Print the notes of an imported configuration."""
    from longrec import imports

    result = imports.import_config(args.config, args.into, user=args.user, item=args.item)
    notes = [
        f"{one['fate']}: {args.config}:{one['line']}:{one['column']}: {one['field']}: {one['words']}"
        for one in result["notes"]
    ]
    _write_result(args, result, "\n".join([*notes, *result["choices"], "", *result["files"]]))


def compress(args: argparse.Namespace) -> None:
    """Print the versions of a token store."""
    from longrec import commands

    report = commands.compress(args.run, args.into, args.overrides, device=args.device, quiet=args.quiet)
    warning = f"\nthese tokens leak: they were {report.leak}" if report.leak else ""
    _write_report(args, report, "impressions", warning)


def encode(args: argparse.Namespace) -> None:
    """Print the versions of a knowledge folder."""
    from longrec import commands

    report = commands.encode(args.run, args.into, args.overrides, device=args.device, quiet=args.quiet)
    _write_report(args, report, "vectors")


def _write_report(args: argparse.Namespace, report: Any, rows_name: str, warning: str = "") -> None:
    rows = [[one["version"], one["from"], one["rows"], one["auc"]] for one in report.versions]
    text = table(["version", "writes from", rows_name, "AUC before learning"], rows)
    text += f"\n{report.tokens:,} vectors in {report.into}\nread them in a schema: {report.hint}{warning}"
    _write_result(args, vars(report), text)


def evaluate(args: argparse.Namespace) -> None:
    """Print the metrics of a run."""
    from longrec import commands
    from longrec.evaluation import command
    from longrec.reporting import tables

    command.check_options(args)
    if command.is_pipeline(args.run):
        measured, folder = command.evaluate(args)
        _write_result(args, {**measured.to_dict(), "folder": str(folder)}, f"{measured.format()}\n{folder}")
        return
    evaluation = commands.evaluate(args.run, args.split, **read_new_rows(args), device=args.device)
    _write_result(args, evaluation.to_dict(), tables.results_table(evaluation.run, evaluation.to_dict()))


def candidates(args: argparse.Namespace) -> None:
    """Write the candidates of a pipeline as rows to train on."""
    from longrec.pipeline_commands import candidates as write

    write(args)


def predict(args: argparse.Namespace) -> None:
    """Print the file of predictions."""
    from longrec import commands

    new = read_new_rows(args)
    if new:
        path, scores = commands.predict_rows(args.run, into=args.into, device=args.device, **new)
        text = "\n".join([*scores.describe(), str(path)])
        _write_result(args, {"predictions": str(path), **scores.to_dict()}, text)
        return
    path = commands.predict(args.run, args.split, args.into, device=args.device)
    _write_result(args, {"predictions": str(path)}, str(path))


def compare(args: argparse.Namespace) -> None:
    """Print a comparison."""
    from longrec import commands
    from longrec.evaluation import command
    from longrec.reporting import tables

    if command.are_pipelines(args.runs):
        _write_result(args, *command.compare(args))
        return
    rows = {**read_new_rows(args), "resample": args.resample, "n_resamples": args.n_resamples, "common": args.common}
    result = commands.compare(args.runs, args.split, **rows).to_dict()
    own_rows = args.log is None and not args.common and args.split == "test"  # those of the predictions of each run
    report = commands.try_report(args.runs) if own_rows and not args.no_report else None
    text = tables.comparison_table(result) + (f"\nreport: {report}" if report else "")
    _write_result(args, {**result, "report": report}, text)


def export(args: argparse.Namespace) -> None:
    """Print the command that serves a new bundle."""
    from longrec import commands
    from longrec.config import apply_overrides

    own = {"index": args.index, "recall_target": args.recall_target, "recall_at": args.recall_at, "states": args.states}
    explore = None if args.explore is None else apply_overrides({}, args.explore)
    manifest = commands.export(args.run, args.bundle, overwrite=args.overwrite, explore=explore, **own)
    kinds = dict.fromkeys(("ranker", "reranker", "retriever"), f"serve {args.bundle}")
    kinds |= {"encoder": f"serve RANKER.bundle --events {args.bundle}"}
    _write_result(args, manifest, f"{args.bundle}\nserve it with: longrec {kinds[manifest.kind]}")


def trace(args: argparse.Namespace) -> None:
    """Print the trace of a request."""
    from longrec.pipeline_commands import trace as run_trace

    run_trace(args)


def catalog(args: argparse.Namespace) -> None:
    """Print how many items a bundle has after changes."""
    from longrec.catalog_command import change_catalog

    counts = change_catalog(args.bundle, args.changes)
    numbers = f"{counts['items']:,} items, {counts['withdrawn']:,} of them withdrawn"
    _write_result(args, counts, f"{args.bundle}: {counts['changes']:,} changes, {numbers}")


def events(args: argparse.Namespace) -> None:
    """Print how many recorded events were written."""
    from longrec.events_command import export_events

    count = export_events(args.state, args.output)
    _write_result(args, {"events": count, "output": args.output}, f"{args.output}: {count:,} events")


def warm(args: argparse.Namespace) -> None:
    """Print how many states of users there are, and how many events of a log were recorded."""
    from longrec.warm_command import locate_refused
    from longrec.warm_command import warm as run_warm

    if args.log is None and (args.refused is not None or args.allow_unknown):
        raise ConfigError("longrec warm", ["--refused and --allow-unknown: belong to --log"])
    done = run_warm(args.bundle, args.state, args.at, args.log, args.allow_unknown, args.refused)
    size = done["states"] * done["bytes_per_user"] / 1e6
    text = (
        f"{done['states']:,} states of {done['users']:,} users, {done['folded']:,} of them folded now; "
        f"{done['bytes_per_user']:,} bytes each, {size:,.1f} MB"
    )
    if args.log is not None:
        refused = f", see {args.refused or locate_refused(args.bundle)}" if done["refused"] else ""
        counts = f"{done['events']:,} events, {done['unchanged']:,} recorded before, {done['refused']:,} refused"
        text = f"{counts}{refused}\n{text}"
    _write_result(args, done, text)


def stream(args: argparse.Namespace) -> None:
    """Print what a worker of a stream recorded."""
    from longrec.stream_command import stream as run_stream

    if args.batch < 1:
        raise ConfigError("longrec stream", [f"--batch: {args.batch} is not a number from 1"])
    options = {"group": args.group, "consumer": args.consumer, "batch": args.batch, "until_empty": args.until_empty}
    done = run_stream(args.bundle, args.source, args.state, **options)
    text = f"{done['events']:,} events, {done['unchanged']:,} recorded before, {done['refused']:,} refused, "
    _write_result(args, done, f"{text}{done['trimmed']:,} trimmed; {done['folded']:,} states folded")


def serve(args: argparse.Namespace) -> None:
    """Serve a bundle or a pipeline."""
    from longrec.serve.access import AccessOptions
    from longrec.serve.limits import Limits
    from longrec.serve.server import serve as run_server
    from longrec.serve.settings import build_settings

    faults = [
        f"--tokens: {item!r} is not HISTORY=LOCATION" for item in args.tokens if not all(item.partition("=")[::2])
    ]
    if args.state is not None and args.events is None:
        faults.append("--state: needs --events, which records events")
    if faults:
        raise ConfigError("longrec serve", faults)
    tokens = dict(item.split("=", 1) for item in args.tokens)
    settings = build_settings(tokens, args.events, args.state, args.recall)
    limits = Limits(queue=args.queue, deadline=args.deadline, connections=args.connections)
    access = AccessOptions(args.api_keys, tuple(args.allowed_hosts))
    own = {"host": args.host, "port": args.port, "workers": args.workers, "private": args.private}
    run_server(args.bundle, **own, settings=settings, limits=limits, access=access)


def models(args: argparse.Namespace) -> None:
    """Print the list of models."""
    from longrec.models.core.catalog import describe, names

    cards = [describe(name) for name in names()]
    rows = [[card.name, card.kind, "yes" if card.reads_history else "no", _format_paper(card)] for card in cards]
    _write_result(args, cards, table(["model", "kind", "histories", "paper"], rows))


def _format_paper(card: Any) -> str:
    """Return title and year in one line."""
    return f"{card.title} ({card.year})" if card.year else card.title


def explain(args: argparse.Namespace) -> None:
    """Print the pages of a topic."""
    from longrec import help_pages

    if args.topic is None:
        print(help_pages.format_topics())
        return
    print(help_pages.format_help(args.topic, args.list_parsers()))


def cite(args: argparse.Namespace) -> None:
    """Print BibTeX entries."""
    from longrec import listings

    bibliography = listings.cite(args.source, args.overrides)
    # BibTeX ignores text between entries, so the whole output can be one file of BibTeX.
    lines = [f"% {path}: {', '.join(names)}" for path, names in bibliography.models.items()]
    lines += [f"% {path} is not cited: {reason}" for path, reason in bibliography.unread.items()]
    _write_result(args, bibliography, "\n".join([*lines, *(f"\n{entry.bibtex}" for entry in bibliography.entries)]))


def synthetic(args: argparse.Namespace) -> None:
    """Print, or write, synthetic datasets."""
    from longrec import listings

    if args.name is None:
        datasets = [listings.explain_synthetic(name) for name in listings.synthetic_datasets()]
        text = "\n\n".join(f"{one['dataset']}\n{_wrap_text(one['story'])}" for one in datasets)
        _write_result(args, datasets, text)
        return
    options = [f"{name}={value}" for name in DATASET_OPTIONS if (value := getattr(args, name)) is not None]
    overrides = [*args.overrides, *options]
    if args.into is None:
        if overrides:
            raise ConfigError("longrec synthetic", ["--into: is required with parameters: the folder of the dataset"])
        dataset = listings.explain_synthetic(args.name)
        rows = [[name, str(one["default"]), one["about"]] for name, one in dataset["parameters"].items()]
        listing = table(["parameter", "default", "meaning"], rows)
        _write_result(args, dataset, f"{_wrap_text(dataset['story'])}\n\n{listing}")
        return
    result = listings.make_synthetic(args.name, args.into, overrides, seed=args.seed)
    text = f"{result['events']:,} events of {result['users']:,} users in {result['folder']}\n"
    text += _wrap_text(", ".join(result["files"]))
    tested = f"on {result['test_rows']:,} test rows"
    if "bayes_auc" in result:
        measured = table([f"true probability, {tested}", "AUC"], list(result["bayes_auc"].items()))
    else:
        measured = table([f"largest to expect, {tested}", "rate"], list(result["best_hit_rate"].items()))
    text += f"\n\n{measured}\n\ncontinue with"
    jobs = [name for name in result["files"] if name.endswith(".yaml") and not name.endswith(".schema.yaml")]
    _write_result(args, result, text + "".join(f"\n  longrec train {Path(args.into) / job}" for job in jobs))


def _wrap_text(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")


def demo(args: argparse.Namespace) -> None:
    """Run the demo."""
    from longrec.demo import demo as run_demo

    run_demo(args.folder)
