"""The vocabulary as a test: words that no identifier, config key, option or file name may hold.

``docs/decisions/0019-one-vocabulary.md`` says why, and ``docs/guide/glossary.md`` defines the terms that are used. In
prose, only British spelling and a few private words are looked for: the others are ordinary English there.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from longrec.cli import build_parser
from longrec.config import Strict
from longrec.models.core.catalog import names
from longrec.models.core.registry import find

ROOT = Path(__file__).resolve().parent.parent
CODE = ("src", "tests", "bench", "docs", "examples")

TERMS = frozenset(
    "told tell tells found made given place places part parts moment moments known past lag regime regimes "  # noqa: SIM905
    "probe words fate verb verbs room rooms house wing shelf face home ground world worlds knob knobs oracle "
    "oracles delta deltas journal journals rewrite rewrites mixing layered durable ask asks asked asker "
    "replicates accumulator".split()
)
"""Components of a name. ``told_before`` and ``_Told`` both hold ``told``."""
PAIRS = frozenset(
    {
        ("own", "loss"),
        ("look", "back"),
        ("looks", "back"),
        ("home", "of"),
        ("cross", "entropy"),
        ("since", "previous"),
        ("sessions", "back"),
        ("start", "from"),
        ("by", "length"),
        ("tables", "lr"),
        ("label", "known"),
    }
)
BRITISH = re.compile(
    r"optimis|normalis|standardis|quantis|initialis|organis|recognis|summaris|serialis|regularis|minimis|maximis|"
    r"tokenis|generalis|penalis|vectoris|materialis|behaviour|catalogue|colour|favour|neighbour|honour|"
    r"labelled|labelling|learnt|centre",
    re.IGNORECASE,
)
FORMER = re.compile(
    r"optimiser\.safetensors|optimisers\"|normalised_entropy|standardised\"|^ +\"(?:\w+)\": \"\w+\",$|renamed_\w+"
)
"""Lines that hold a stored name, or a former key beside its present name."""
KEYS = frozenset(
    "optimiser tables_optimiser tables_lr table of by_length accumulator replicates own_loss "  # noqa: SIM905
    " look_back regime probe lag past keep known_after known_at label_known_after last sessions_back "
    "since_previous start_from validations_per_epoch part parts place places told knobs tell".split()
)
"""Config keys and options by their whole name."""
ALLOWED = re.compile(r"initial_accumulator_value|_?bucket_by_length|connection_made")
"""Terms of the field, and methods of asyncio, that hold a word of the list."""
OF_ERRORS = "found"
"""What an error found, one of the four parts of a message: a parameter and an attribute in ``errors.py``."""
QUOTING = (
    "test_forbidden_terms.py",
    "test_renamed_keys.py",
    "test_v0_4.py",
    "test_renames.py",
    "0019-one-vocabulary.md",
)
"""Files that quote former names."""
PRIVATE = re.compile(r"\b(?:knobs?|regimes?|asker|verbs?)\b", re.IGNORECASE)


def components(name: str) -> list[str]:
    """Return the words of a name in lower case."""
    return [word.lower() for word in re.findall(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]*", name)]


def forbidden_word(name: str) -> str | None:
    """Return the forbidden word in a name."""
    if ALLOWED.fullmatch(name):
        return None
    terms = components(name)
    if single := next((term for term in terms if term in TERMS), None):
        return single
    for pair in zip(terms, terms[1:]):
        if pair in PAIRS and not (pair == ("since", "previous") and "time" in terms):
            return "_".join(pair)
    british = BRITISH.search(name)
    return british.group() if british else None


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that code names itself. Names of libraries are only used, not defined."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.arg():
                yield node.lineno, node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def faults_of(path: Path) -> list[str]:
    """Return the forbidden words in the file name and in the names that a file defines."""
    shown = path.relative_to(ROOT)
    faults = [f"{shown}: the file name holds {word!r}" for word in (forbidden_word(path.stem),) if word]
    for line, name in defined_names(ast.parse(path.read_text(encoding="utf-8"))):
        word = forbidden_word(name)
        if word and not (name == OF_ERRORS and path.name == "errors.py"):
            faults.append(f"{shown}:{line}: {name} holds {word!r}")
    return faults


def python_files() -> list[Path]:
    """Return every Python file of the project."""
    return sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", CODE)
def test_no_identifier_and_no_file_name_holds_a_forbidden_word(folder: str) -> None:
    faults = [fault for path in sorted((ROOT / folder).rglob("*.py")) for fault in faults_of(path)]
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_no_folder_and_no_page_holds_a_forbidden_word() -> None:
    paths = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_dir() or path.suffix == ".md"]
    faults = [str(path.relative_to(ROOT)) for path in paths if forbidden_word(path.stem)]
    assert not [fault for fault in faults if "__pycache__" not in fault and "results" not in fault]


def _subclasses(cls: type) -> list[type]:
    return [inner for child in cls.__subclasses__() for inner in (child, *_subclasses(child))]


def test_no_config_key_and_no_choice_is_forbidden() -> None:
    for name in names():
        find(name)
    faults = []
    for cls in _subclasses(Strict):
        if not cls.__module__.startswith("longrec."):
            continue
        for key, field in cls.model_fields.items():  # type: ignore[attr-defined]
            for written in {key, field.alias or key}:
                if written in KEYS or forbidden_word(written):
                    faults.append(f"{cls.__module__}.{cls.__name__}: {written}")
    assert not faults, "\n".join(faults)


def _options(of: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, inner in action.choices.items():
                yield command, command
                yield from ((command, option) for _, option in _options(inner))
        elif action.help != argparse.SUPPRESS:
            yield "", action.dest


def test_no_command_and_no_option_is_forbidden() -> None:
    faults = [
        f"{command} {option}"
        for command, option in _options(build_parser())
        if option in KEYS or forbidden_word(option)
    ]
    assert not faults, "\n".join(faults)


def _prose() -> list[Path]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return [*pages, *python_files()]


@pytest.mark.parametrize("pattern", [BRITISH, PRIVATE], ids=["British", "private"])
def test_prose_holds_no_private_word(pattern: re.Pattern[str]) -> None:
    faults = []
    for path in _prose():
        if path.name in QUOTING:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in pattern.finditer(line):
                if "://" not in line and not FORMER.search(line):
                    faults.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}: {line.strip()[:100]}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


def test_every_kind_of_name_is_checked() -> None:
    """Every kind of name is looked at."""
    source = """
import numpy as told
class Placed(Base):
    known: int
    def ask_it(self, moment, *, parts=1):
        self.words = moment
        for found in parts: pass
        with a as fate: pass
        try: pass
        except E as regime: pass
def place_U(optimiser): return FileNotFoundError(optimiser.parts)
"""
    reported = {forbidden_word(name) for _, name in defined_names(ast.parse(source))} - {None}
    expected = {"told", "known", "ask", "moment", "parts", "words", "found", "fate", "regime", "place", "optimis"}
    assert reported == expected
    assert forbidden_word("time_since_previous") is None
    assert forbidden_word("since_previous") == "since_previous"
