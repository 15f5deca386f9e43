"""Options of the command line for new rows: ``--log``, and the tables that come with it."""

from __future__ import annotations

import argparse
from typing import Any

from longrec.errors import ConfigError


def add_new_rows(parser: argparse.ArgumentParser, *, candidates: bool = False) -> None:
    """Add the options of a command that reads new rows in place of a split."""
    log = "files of new rows to read in place of a split; histories also have the events of the run's own log"
    parser.add_argument("--log", nargs="+", metavar="FILE", help=log)
    parser.add_argument("--users", metavar="FILE", help="table of new or changed users of --log")
    parser.add_argument("--items", metavar="FILE", help="table of new or changed items of --log")
    if candidates:
        about = "the rows of --log are candidates to score and not events: no history has them"
        parser.add_argument("--candidates", action="store_true", help=about)


def add_common_rows(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that compares runs on other rows than those of one split."""
    common = "compare on the rows that the splits of all runs have, by user, item and timestamp"
    parser.add_argument("--common", action="store_true", help=common)
    add_new_rows(parser)


def read_new_rows(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a command for new rows. Empty without ``--log``.

    Raises:
        ConfigError: another option for new rows without ``--log``.
    """
    names = [name for name in ("users", "items", "candidates") if hasattr(args, name)]
    if args.log is not None:
        return {"log": args.log, **{name: getattr(args, name) for name in names}}
    faults = [f"--{name}: is for new rows; name their files with --log" for name in names if getattr(args, name)]
    if faults:
        raise ConfigError("command line", faults)
    return {}
