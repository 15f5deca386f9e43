"""Every option and command in a message exists on the command line."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec import cli

PACKAGE = Path(cli.__file__).parent
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_COMMAND = re.compile(r"(?<!from )(?<!import )\blongrec ([a-z]+)((?: +(?!then\b|and\b)[^\s,;:`'\"]+)*)")
_COMMANDS_OF = {"serve": {"serve"}, "interop": {"import"}, "train": {"train"}, "imports.py": {"import"}}
"""Package or file -> commands of its bare options. Other files may name options of any command."""


def list_options() -> dict[str, set[str]]:
    """Return the options of every command."""
    (sub,) = (one for one in cli.build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return {name: {*command._option_string_actions, "--version"} for name, command in sub.choices.items()}


def list_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string of a file. Expressions of f-strings become ``X``."""
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= set(node.values)
            yield node.lineno, "".join(one.value if isinstance(one, ast.Constant) else "X" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.lineno, node.value


def faults(where: str, line: int, text: str, commands: dict[str, set[str]]) -> list[str]:
    """Return the commands and options of a text that do not exist on the command line."""
    faulty, rest = [], text
    for match in _COMMAND.finditer(text):
        name, arguments = match.groups()
        if name in commands:
            wrong = [word for word in _OPTION.findall(arguments) if word not in commands[name]]
            faulty += [f"{where}:{line}: longrec {name} takes no {word}" for word in wrong]
            rest = rest.replace(match[0], " ")
        elif re.match(r"\s*--|\s+[A-Z]+\b|$", arguments):
            faulty.append(f"{where}:{line}: no command {name}: {match[0]}")
    package = where.split("/")[0]
    allowed = set().union(*(commands[command] for command in _COMMANDS_OF.get(package, commands)))
    return faulty + [f"{where}:{line}: no option {word}" for word in _OPTION.findall(rest) if word not in allowed]


def test_every_command_and_option_that_is_named_exists() -> None:
    commands, faulty, count = list_options(), [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if where in (
            "reporting/style.py",
            "semantic_ids/diagnostics/diagnosis_style.py",
            "data/public_datasets.py",
            "training/machine.py",
        ):  # style sheets, options of pip and git
            continue
        for line, text in list_texts(path):
            count += len(_OPTION.findall(text)) + len(_COMMAND.findall(text))
            faulty += faults(where, line, text, commands)
    assert faulty == []
    assert count > 40


@pytest.mark.parametrize(
    ("where", "text", "says"),
    [
        ("data/x.py", "prepare it again: longrec preprae RUN", "no command preprae"),
        ("training/x.py", "go on with longrec train --resumee X", "longrec train takes no --resumee"),
        ("training/x.py", "longrec check X --item COLUMN", "longrec check takes no --item"),
        ("serve/x.py", "give it with --into", "no option --into"),
        ("data/x.py", "say --nothing", "no option --nothing"),
    ],
)
def test_planted_advice_is_detected(where: str, text: str, says: str) -> None:
    assert any(says in fault for fault in faults(where, 1, text, list_options()))


def test_sound_advice_is_accepted() -> None:
    for text in ("longrec train --resume X", "a run of longrec train.", "from longrec import cli", "longrec help NAME"):
        assert faults("data/x.py", 1, text, list_options()) == []
