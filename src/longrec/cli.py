"""The command ``longrec``: one function a verb, no logic.

Exit code 0 on success, 2 for a fault that the user can mend (with a message), 130 when interrupted, 141 when the
reader of the output left, and 1 for a fault of our own, whose trace goes to a file.
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
from longrec.report import tables
from longrec.resources import resource_error


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code.
    """
    try:
        args = _parsed(words)
        args.verb(args)
        sys.stdout.flush()  # here, and not when the interpreter ends, where nobody would catch what it raises
    except LongRecError as error:
        return _told(error)
    except KeyboardInterrupt:
        print("longrec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:  # noqa: BLE001 - the last resort of the command line: told, kept in a file, exit 1
        ordinary = resource_error(error)
        return _our_fault(error) if ordinary is None else _told(ordinary)
    return 0


def _told(error: LongRecError) -> int:
    print(f"longrec: {type(error).__name__}: {error}", file=sys.stderr)
    return 2


def _reader_left() -> int:
    """Whoever read our output has seen enough (``longrec models | head``): end as other commands do, without a word."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file has nothing left to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The words as a verb with its options; settings may stand after options too, where argparse loses them."""
    made = parser()
    words = sys.argv[1:] if words is None else words
    if not words:
        return argparse.Namespace(verb=lambda _: print(made.format_help(), end=""))
    try:
        args, rest = made.parse_known_args(words)
    except SystemExit:
        sys.stdout.flush()
        raise
    if rest and (not hasattr(args, "overrides") or any("=" not in word or word.startswith("-") for word in rest)):
        made.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _our_fault(error: Exception) -> int:
    print(f"longrec: a fault of LongRec itself: {type(error).__name__}: {error}", file=sys.stderr)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="longrec-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:  # no room for a file: the trace must not be lost
        traceback.print_exception(error)
        return 1
    print(f"  The full trace is in {file.name}; please report it.", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(prog="longrec", description="Recommendation from long user histories.")
    top.add_argument("--version", action="version", version=f"longrec {__version__}")
    sub = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str, *, json: bool = True) -> argparse.ArgumentParser:
        made = sub.add_parser(name, help=about, description=about)
        made.set_defaults(verb=run)
        if json:
            made.add_argument("--json", metavar="FILE", help="write the result as JSON too; - is standard output")
        return made

    def with_config(made: argparse.ArgumentParser, *, optional: bool = False) -> argparse.ArgumentParser:
        made.add_argument("config", nargs="?" if optional else None, help="a YAML config, or an EasyRec one (.config)")
        made.add_argument("overrides", nargs="*", metavar="key.key=value", help="settings laid over the config")
        return made

    with_config(verb("check", _check, "tell every fault of a config; reads the headers of files, and no row"))
    with_config(verb("prepare", _prepare, "turn an event log into a prepared log"))
    made = with_config(verb("train", _train, "train a model and measure it"), optional=True)
    made.add_argument("--resume", metavar="RUN", help="go on with an interrupted run")
    made.add_argument("--quiet", action="store_true", help="no progress")
    made = verb("import", _import, "turn a configuration of EasyRec into a config, a schema and notes on what differs")
    made.add_argument("config", help="an EasyRec configuration (.config, .pbtxt), or an fg.json")
    made.add_argument("--into", required=True, metavar="FOLDER", help="where config.yaml, schema.yaml and NOTES.md go")
    made.add_argument("--user", metavar="COLUMN", help="column of the user, where its name does not tell")
    made.add_argument("--item", metavar="COLUMN", help="column of the item, where its name does not tell")
    made = verb(
        "compress", _compress, "write the tokens of a trained source, one an impression, for other models to read"
    )
    made.add_argument("run")
    made.add_argument("--into", required=True, metavar="NAME/vN", help="the store: a new folder, or a redis:// address")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings: regime, every, codec, ...")
    made.add_argument("--quiet", action="store_true", help="no progress")
    made = verb("evaluate", _evaluate, "measure a run: every metric with its interval")
    made.add_argument("run")
    _part(made)
    made = verb("predict", _predict, "score every sample of a part into a Parquet file")
    made.add_argument("run")
    _part(made)
    made.add_argument("--into", metavar="FILE", help="where the scores go (default: inside the run)")
    made = verb("compare", _compare, "compare runs on the same rows, the first as baseline")
    made.add_argument("runs", nargs="+", metavar="RUN")
    _part(made)
    made.add_argument("--unit", choices=["user", "row"], default="user", help="what the bootstrap draws")
    made.add_argument("--n-resamples", type=int, default=300, help="bootstrap draws")
    made = verb(
        "export", _export, "turn a run (or the source of some tokens) into a bundle, and check that it answers alike"
    )
    made.add_argument("run", help="a run, or a folder of tokens: then its source")
    made.add_argument("bundle")
    made.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    made = verb("serve", _serve, "serve a bundle over HTTP", json=False)
    made.add_argument("bundle")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--workers", type=int, default=1, help="processes")
    live = "read a live store of tokens, a folder or a redis:// address, in place of the bundle's copy"
    made.add_argument("--tokens", action="append", default=[], metavar="HISTORY=PLACE", help=live)
    made.add_argument("--events", metavar="SOURCE.bundle", help="take events, and make tokens of them by this source")
    made.add_argument("--state", metavar="PLACE", help="where events are kept (default: BUNDLE.state)")
    verb("models", _models, "every model: name, kind, paper, whether it reads histories")
    made = verb("help", _help, "explain a model and its settings", json=False)
    made.add_argument("name")
    made = verb("cite", _cite, "print the BibTeX of a model, or of all that a config or a run stands on")
    made.add_argument("source", help="a model, a config (YAML or EasyRec's), a run, or a folder of tokens")
    made.add_argument("overrides", nargs="*", metavar="key.key=value", help="settings laid over a config")
    made = verb("worlds", _worlds, "small made-up logs whose answer is known: list them, explain one, write one")
    made.add_argument("name", nargs="?", help="a world")
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="knobs of the world; without --into it tells them"
    )
    made.add_argument("--into", metavar="FOLDER", help="write the world there")
    made.add_argument("--seed", type=int, default=0, help="same seed and knobs, same world")
    for knob in ("users", "fields", "tell"):
        made.add_argument(f"--{knob}", metavar=knob.upper(), help=f"short for {knob}={knob.upper()}")
    made = verb("demo", _demo, "MovieLens-1M from raw ratings to a server that ranks", json=False)
    made.add_argument("--folder", default="longrec-demo", help="where everything goes")
    return top


def _part(made: argparse.ArgumentParser) -> None:
    made.add_argument("--part", choices=["train", "valid", "test"], default="test", help="which rows")


def _out(args: argparse.Namespace, result: Any, text: str) -> None:
    """Print a result for people, and write it as JSON where asked (alone, when that is standard output)."""
    if args.json != "-":
        print(text)
    if args.json:
        tables.write_json(result, args.json)


def _config(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """An override in the place of the config is an override."""
    if args.config is not None and "=" in args.config and not Path(args.config).exists():
        return None, [args.config, *args.overrides]
    return args.config, args.overrides


def _check(args: argparse.Namespace) -> None:
    found = commands.check(args.config, args.overrides)
    histories = ", ".join(f"{name} ({', '.join(of)})" for name, of in found["histories"].items()) or "none"
    text = f"{args.config}: no faults\n  model      {found['model']}\n  log        {found['log']}\n"
    text += f"  features   {', '.join(found['features'])}\n  histories  {histories}"
    _out(args, found, "\n".join([text, *found["notes"], *tables.warning_lines(found["warnings"])]))


def _prepare(args: argparse.Namespace) -> None:
    found = commands.prepare(args.config, args.overrides)
    spans = found.get("spans", {})
    rows = [
        [
            part,
            count["samples"],
            count["positives"] / max(count["samples"], 1),
            *(spans.get(part, ["", ""]) if spans else ()),
        ]
        for part, count in found["parts"].items()
    ]
    text = f"{found['events']:,} events, {found['users']:,} users, {found['items']:,} items, in {found['seconds']} s\n"
    text += tables.table(["part", "samples", "positive rate", *(["from", "to"] if spans else [])], rows)
    for name, share in found["hash_collisions"].items():
        text += f"\nfeature {name}: about {share:.1%} of its values share a hash bucket with another"
    text = "\n".join(
        [text, *found["notes"], *tables.left_out_lines(found["left_out"]), *tables.warning_lines(found["warnings"])]
    )
    _out(args, found, f"{text}\n{found['folder']}")


def _train(args: argparse.Namespace) -> None:
    config, overrides = _config(args)
    if config is not None:
        # Before training, so that whoever reads them can still stop it; they are kept in the run too (NOTES.md).
        for line in imports.read_job_source(config, overrides).notes:
            print(line, file=sys.stderr if args.json == "-" else sys.stdout, flush=True)
    run = commands.train(config, overrides, resume=args.resume, quiet=args.quiet)
    _out(args, {**run.results, "run": str(run.folder)}, f"{tables.results_table(run.name, run.results)}\n{run.folder}")


def _import(args: argparse.Namespace) -> None:
    found = imports.import_config(args.config, args.into, user=args.user, item=args.item)
    told = [
        f"{one['fate']}: {args.config}:{one['line']}:{one['column']}: {one['field']}: {one['words']}"
        for one in found["notes"]
    ]
    _out(args, found, "\n".join([*told, *found["choices"], "", *found["files"]]))


def _compress(args: argparse.Namespace) -> None:
    found = commands.compress(args.run, args.into, args.overrides, quiet=args.quiet)
    rows = [[one["version"], one["from"], one["rows"], one["auc"]] for one in found.versions]
    text = tables.table(["version", "writes from", "impressions", "AUC before learning"], rows)
    warning = f"\nthese tokens leak: they were {found.leak}" if found.leak else ""
    told = f"{found.tokens:,} vectors in {found.into}\nread them in a schema: {found.hint}"
    _out(args, vars(found), f"{text}\n{told}{warning}")


def _evaluate(args: argparse.Namespace) -> None:
    found = commands.evaluate(args.run, args.part)
    _out(args, found.to_dict(), tables.results_table(found.run, found.to_dict()))


def _predict(args: argparse.Namespace) -> None:
    path = commands.predict(args.run, args.part, args.into)
    _out(args, {"predictions": str(path)}, str(path))


def _compare(args: argparse.Namespace) -> None:
    found = commands.compare(args.runs, args.part, resample=args.unit, n_resamples=args.n_resamples).to_dict()
    _out(args, found, tables.comparison_table(found))


def _export(args: argparse.Namespace) -> None:
    found = commands.export(args.run, args.bundle, overwrite=args.overwrite)
    kinds = {"ranker": f"serve {args.bundle}", "encoder": f"serve RANKER.bundle --events {args.bundle}"}
    _out(args, found, f"{args.bundle}\nserve it with: longrec {kinds[found.kind]}")


def _serve(args: argparse.Namespace) -> None:
    from longrec.serve.server import serve
    from longrec.serve.settings import build_settings

    faults = [f"--tokens: {word!r} is not HISTORY=PLACE" for word in args.tokens if not all(word.partition("=")[::2])]
    if args.state is not None and args.events is None:
        faults.append("--state: needs --events, which says who makes tokens of events")
    if faults:
        raise ConfigError("longrec serve", faults)
    tokens = dict(word.split("=", 1) for word in args.tokens)
    settings = build_settings(tokens, args.events, args.state)
    serve(args.bundle, host=args.host, port=args.port, workers=args.workers, settings=settings)


def _models(args: argparse.Namespace) -> None:
    found = commands.models()
    rows = [[card.name, card.kind, "yes" if card.reads_history else "no", _paper(card)] for card in found]
    _out(args, found, tables.table(["model", "kind", "histories", "paper"], rows))


def _paper(card: Any) -> str:
    """Title and year, for one line of a table."""
    return f"{card.title} ({card.year})" if card.year else card.title


def _help(args: argparse.Namespace) -> None:
    print(commands.explain_model(args.name))


def _cite(args: argparse.Namespace) -> None:
    found = commands.cite(args.source, args.overrides)
    # What stands between entries is no part of a bibliography: the whole output can be one file of BibTeX.
    parts = {place: ", ".join(names) for place, names in found.models.items()}
    told = [f"% {place}: {words}" for place, words in parts.items()]
    told += [f"% {place} is not cited: {reason}" for place, reason in found.unread.items()]
    _out(args, found, "\n".join([*told, *(f"\n{entry.bibtex}" for entry in found.entries)]))


def _worlds(args: argparse.Namespace) -> None:
    if args.name is None:
        told = [commands.explain_world(name) for name in commands.worlds()]
        _out(args, told, "\n\n".join(f"{one['world']}\n{_folded(one['story'])}" for one in told))
        return
    short = [f"{knob}={value}" for knob in ("users", "fields", "tell") if (value := getattr(args, knob)) is not None]
    knobs = [*args.overrides, *short]
    if args.into is None:
        if knobs:
            raise ConfigError("longrec worlds", ["--into: is required with knobs: the folder that the world goes to"])
        found = commands.explain_world(args.name)
        rows = [[name, str(knob["default"]), knob["about"]] for name, knob in found["knobs"].items()]
        _out(args, found, f"{_folded(found['story'])}\n\n{tables.table(['knob', 'default', 'what'], rows)}")
        return
    found = commands.make_world(args.name, args.into, knobs, seed=args.seed)
    text = f"{found['events']:,} events of {found['users']:,} users in {found['folder']}\n"
    text += _folded(", ".join(found["files"]))
    head = f"true probability, on {found['test_rows']:,} test rows"
    text += f"\n\n{tables.table([head, 'AUC'], list(found['oracles'].items()))}\n\ngo on with"
    jobs = [name for name in found["files"] if name.endswith(".yaml") and not name.endswith(".schema.yaml")]
    _out(args, found, text + "".join(f"\n  longrec train {Path(args.into) / job}" for job in jobs))


def _folded(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ")


def _demo(args: argparse.Namespace) -> None:
    from longrec.demo import demo

    demo(args.folder)


if __name__ == "__main__":
    sys.exit(main())
