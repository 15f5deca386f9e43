"""Diagnosis of semantic IDs: ``longrec.diagnose``, and the command ``longrec diagnose``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from longrec.semantic_ids.diagnostics.diagnosis import Diagnosis

WEIGHTS, SIGMAS = ("items", "exposure"), ("level", "latent")
PAGE = "diagnosis.html"
"""The page, in the folder of a tokenizer. For a table it is TABLE-diagnosis.html in the working directory."""


def diagnose(
    codes: Any,
    *,
    vectors: Any = None,
    log: Any = None,
    against: Any = None,
    into: str | Path | None = None,
    column: str | None = None,
    levels: int | None = None,
    size: int | None = None,
    vector: str | None = None,
    item: str | None = None,
    user: str | None = None,
    time: str | None = None,
    order: str | None = None,
    split: str | None = None,
    until: float | str | None = None,
    weights: str = "items",
    sigma: float | None = None,
    sigma_of: str = "level",
    seed: int = 0,
) -> Diagnosis:
    """Diagnose semantic IDs: what is wrong with the codes of a tokenizer, and what to change.

    Usage of the codes, prefixes and twins are always measured. Overlap and effective capacity need codebooks. What the
    codes keep of the vectors needs ``vectors`` and ``log``. Whether they follow behavior needs ``log``.

    Args:
        codes: folder of ``longrec tokenize``, or a table (file or frame) with a key of the item and its codes, as
            columns ``code_1`` and so on or as one list column. For a table, codebooks are computed as means of
            residuals of ``vectors``.
        vectors: table of item vectors: a key of the item, and a list column. Items without a vector are left out. Or
            the YAML file of ``longrec tokenize``: its section ``vectors`` says where the vectors come from, and without
            ``log`` its section ``events`` is read too.
        log: events of users: a file, a frame, or the folder of a prepared log. Events whose split is valid or test are
            left out.
        against: another folder or table of the same items, to count how many codes changed.
        into: file for the HTML page. Default: none is written.
        column: list column of the codes in a table. Default: the only one.
        levels: number of levels of a table, which come first. Default: all codes, without a last one that only numbers
            items with equal codes.
        size: number of codes of each level of a table. Default: the largest code + 1.
        vector: list column of the vectors. Default: the only one.
        item, user, time, order, split: columns of the log. ``item`` is also that of the tables, where they have it.
            Default: by their names.
        until: end of the training window: a number in the unit of the times, or a date such as 2026-01-31 (UTC).
        weights: what a code's share counts: ``items``, or ``exposure``, the number of events.
        sigma: standard deviation of the perturbation of a vector, per dimension, for the overlap. Default: the root of
            the mean variance per dimension.
        sigma_of: vectors of that variance: ``level``, the input of each level, or ``latent`` for all levels.
        seed: of samples of pairs and items.

    Raises:
        ConfigError: options that do not fit.
        DataError: a table, a log or a column that cannot be used.
        RunError: a folder that ``longrec tokenize`` has not written.
    """
    from longrec.semantic_ids.diagnostics.code_tables import is_tokenized, read_codes
    from longrec.semantic_ids.diagnostics.diagnosis_page import write_diagnosis
    from longrec.semantic_ids.diagnostics.material_reader import Window, read_material
    from longrec.semantic_ids.diagnostics.measure import diagnose_material

    _check_options(weights, sigma, sigma_of)
    source = read_codes(codes, item=item, codes=column, levels=levels, size=size)
    other = None
    if against is not None:
        is_table = not is_tokenized(against)
        other = (
            read_codes(against, item=item, codes=column, levels=levels, size=size) if is_table else read_codes(against)
        )
    label = str(codes) if isinstance(codes, (str, Path)) else "semantic IDs"
    material = read_material(
        source,
        f"{label}: {column}" if column else label,
        vectors=vectors,
        log=log,
        against=other,
        vector=vector,
        window=Window(item, user, time, order, split, until),
    )
    if weights == "exposure" and material.exposure is None:
        raise ConfigError("diagnose", ["weights: exposure needs a log"])
    diagnosis = diagnose_material(material, weights=weights, sigma=sigma, sigma_of=sigma_of, seed=seed)
    if into is not None:
        write_diagnosis(into, diagnosis)
    return diagnosis


def _check_options(weights: str, sigma: float | None, sigma_of: str) -> None:
    """Raise one error for all options that do not fit.

    Raises:
        ConfigError: if there are any.
    """
    faults = []
    if weights not in WEIGHTS:
        faults.append(f"weights: {weights!r} is none of {', '.join(WEIGHTS)}")
    if sigma_of not in SIGMAS:
        faults.append(f"sigma_of: {sigma_of!r} is none of {', '.join(SIGMAS)}")
    if sigma is not None and not 0 < sigma < float("inf"):
        faults.append(f"sigma: {sigma} is no number above 0")
    if faults:
        raise ConfigError("diagnose", faults)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("codes", help="folder of longrec tokenize, or a table with a key of the item and its codes")
    vectors = "table of item vectors, with a key of the item and a list column; or the YAML file of longrec tokenize"
    parser.add_argument("--vectors", metavar="FILE", help=vectors)
    parser.add_argument("--log", metavar="LOG", help="events of users: a file, or the folder of a prepared log")
    against = "another folder or table of the same items, to count how many codes changed"
    parser.add_argument("--against", metavar="CODES", help=against)
    into = f"the HTML page (default: {PAGE} in the folder, or TABLE-{PAGE} here)"
    parser.add_argument("--into", metavar="FILE", help=into)
    parser.add_argument("--column", metavar="COLUMN", help="list column of the codes in a table; default: the only one")
    levels = "number of levels in a table; default: all codes but a last one that only numbers items with equal codes"
    parser.add_argument("--levels", type=int, metavar="L", help=levels)
    size = "number of codes of each level of a table; default: the largest code + 1"
    parser.add_argument("--size", type=int, metavar="K", help=size)
    parser.add_argument("--vector", metavar="COLUMN", help="list column of the vectors; default: the only one")
    for role in ("item", "user", "time"):
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role}; default: by its name")
    order = "column of the log that numbers the events of each user; default: time, then the rows"
    parser.add_argument("--order", metavar="COLUMN", help=order)
    split = "column of the log with train, valid and test, of which train is read; default: by its name"
    parser.add_argument("--split", metavar="COLUMN", help=split)
    until = "end of the training window, as the times are or as a date; later events are left out"
    parser.add_argument("--until", metavar="TIME", help=until)
    weights = "what the share of a code counts (default: items)"
    parser.add_argument("--weights", choices=WEIGHTS, default="items", help=weights)
    sigma = "perturbation of a vector per dimension; default: the root of the mean variance per dimension"
    parser.add_argument("--sigma", type=float, metavar="SIGMA", help=sigma)
    sigma_of = "vectors of that variance: the input of each level, or the latent (default: level)"
    parser.add_argument("--sigma-of", choices=SIGMAS, default="level", help=sigma_of)
    parser.add_argument("--seed", type=int, default=0, help="seed of samples of pairs and items")
    parser.add_argument("--strict", action="store_true", help="end with exit code 2 if there is an alarm")


def run_diagnose(args: argparse.Namespace) -> None:
    """Write the page, and print the figures of the levels and the findings.

    Raises:
        DataError: an alarm, with ``--strict``.
    """
    from longrec.reporting.tables import write_json
    from longrec.semantic_ids.diagnostics.diagnosis_text import format_diagnosis

    into = args.into or _choose_page(Path(args.codes))
    names = (
        "vectors",
        "log",
        "against",
        "column",
        "levels",
        "size",
        "vector",
        "item",
        "user",
        "time",
        "order",
        "split",
    )
    options = {name: getattr(args, name) for name in (*names, "until", "weights", "sigma", "sigma_of", "seed")}
    result = diagnose(args.codes, into=into, **options)
    if args.json != "-":
        print(f"{format_diagnosis(result)}\n\n{into}")
    if args.json:
        write_json(result, args.json)
    alarms = [one.check for one in result.faults if one.verdict == "alarm"]
    if args.strict and alarms:
        count = f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}"
        raise DataError(args.codes, f"{count}: {', '.join(alarms)}", "none with --strict")


def _choose_page(codes: Path) -> Path:
    return codes / PAGE if codes.is_dir() else Path(f"{codes.stem}-{PAGE}")
