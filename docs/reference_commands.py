"""Reference page of the command line: every command with its arguments, from the parser of the command line."""

from __future__ import annotations

import argparse
import re

from reference_settings import capitalize, escape

from longrec.cli import build_parser

GUIDES = {
    "check": "[Train a model](../guide/training.md)",
    "audit": "[Audit a log](../guide/audit.md)",
    "prepare": "[Histories and point in time](../guide/histories.md)",
    "train": "[Train a model](../guide/training.md)",
    "import": "[Coming from EasyRec](../guide/from-easyrec.md)",
    "compress": "[Instance tokens](../guide/instance-tokens.md), [all settings](tokens.md#compress)",
    "encode": "[Knowledge](../guide/instance-tokens.md#knowledge), [all settings](tokens.md#encode)",
    "tokenize": "[Semantic IDs](../guide/semantic-ids.md), [all settings](tokenize.md)",
    "evaluate": "[Evaluate and compare](../guide/evaluation.md)",
    "compare": "[Evaluate and compare](../guide/evaluation.md)",
    "offpolicy": "[Off-policy estimates](../guide/off-policy.md)",
    "bench": "[The length of histories](../guide/history-length.md)",
    "diagnose": "[Diagnose semantic IDs](../guide/diagnosis.md)",
    "export": "[Export and serve](../guide/serving.md)",
    "catalog": "[Retrieval](../guide/retrieval.md)",
    "events": "[Events and tokens online](../guide/events.md)",
    "stream": "[Events of a stream](../guide/events.md#events-of-a-stream)",
    "warm": "[States of users](../guide/events.md#states-of-users)",
    "serve": "[Export and serve](../guide/serving.md)",
    "trace": "[Pipelines](../guide/pipeline.md)",
    "candidates": "[Pipelines](../guide/pipeline.md#train-the-ranker-on-its-own-candidates)",
    "models": "[Choose a model](../guide/choosing-a-model.md)",
    "synthetic": "[Synthetic datasets](../guide/adding-a-model.md#synthetic-datasets)",
}
"""Page of the guide that shows a command at work."""

INTRO = """Every command that prints a table also writes JSON with `--json FILE`. The file `-` is standard output.
`key.key=value` after a config overrides one setting, such as `fit.lr=3e-3`. `longrec COMMAND --help` prints the
arguments of a command.

| exit code | meaning |
| --- | --- |
| 0 | success |
| 1 | an error of LongRec itself. The message names the file with the full trace |
| 2 | an error that you can repair. The message says how, see [Errors](errors.md) |
| 130 | interrupted |
| 143 | a training that SIGTERM stopped. Continue it with `longrec train --resume` |
| 141 | the reader of the output has closed it |"""


def format_page() -> str:
    """Return the page of all commands."""
    lines = ["# Commands", "", "<!-- Written by `make docs`; do not edit. -->", "", INTRO, ""]
    for name, parser in list_commands().items():
        lines += [f"## {name}", "", f"{capitalize(escape(parser.description or ''))}.", ""]
        lines += ["```text", _format_usage(parser), "```", ""]
        lines += [*map(_format_argument, _list_arguments(parser)), ""]
        lines += [f"Guide: {GUIDES[name]}.", ""] if name in GUIDES else []
    return "\n".join(lines).rstrip() + "\n"


def list_commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command, in the order of ``longrec --help``."""
    choices = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    return dict(choices)


def _list_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return sorted(actions, key=lambda action: (bool(action.option_strings), "--json" in action.option_strings))


def _format_usage(parser: argparse.ArgumentParser) -> str:
    texts = ["longrec", parser.prog.split()[-1]]
    for action in _list_arguments(parser):
        name = _name_value(action)
        if not action.option_strings:
            many = f"{name} ..." if action.nargs in ("*", "+") else name
            texts.append(f"[{many}]" if action.nargs in ("*", "?") else many)
        else:
            text = " ".join([action.option_strings[-1], *([name] if name else [])])
            texts.append(text if action.required else f"[{text}]")
    return _wrap(texts)


def _wrap(texts: list[str]) -> str:
    lines = [texts[0]]
    for word in texts[1:]:
        if len(lines[-1]) + 1 + len(word) > 78:
            lines.append(" " * 4 + word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _name_value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _format_argument(action: argparse.Action) -> str:
    name = " ".join([*action.option_strings[-1:], *([_name_value(action)] if _name_value(action) else [])])
    text = re.sub(r"\s*[(;]?\s*\(default: [^)]*\)", "", action.help or "")
    return f"- `{name}`: {escape(text)}{_format_default(action)}"


def _format_default(action: argparse.Action) -> str:
    if action.required or action.nargs == 0 or action.default in (None, [], argparse.SUPPRESS):
        return ""
    return f". Default: `{action.default}`"
