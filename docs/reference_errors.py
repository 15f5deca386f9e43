"""Reference page of the errors, each with a message that this version writes."""

from __future__ import annotations

import errno
import inspect
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from reference_settings import to_markdown

from longrec import errors
from longrec.config import parse
from longrec.errors import LongRecError
from longrec.models.core.catalog import describe
from longrec.resources import resource_error
from longrec.training.settings import FitConfig

INTRO = """LongRec raises these errors on purpose, all of them from the module `longrec.errors`. A message has up to
four fields: where, what was found, what was expected, and what to do. They are attributes of the error too: `where`,
`found`, `expected`, `do`. A command prints the message and ends with exit code 2. In Python, `except
longrec.errors.LongRecError` catches all of them."""


def _open_bundle() -> object:
    from longrec.exporting.bundle import Bundle

    return Bundle.open("shop.bundle")


def _open_store() -> object:
    from longrec.store.token_store import TokenStore

    return TokenStore.open("tokens/v1")


def _call_server() -> object:
    from redis import ConnectionError as Lost

    from longrec.store.remote_client import call_server

    def read() -> object:
        raise Lost("Error 111 connecting to cache:6379. Connection refused.")

    return call_server("redis://cache:6379/0/shop", read)


def _open_run() -> object:
    from longrec.training.finished_run import open_run

    return open_run("runs/dinn")


def _stop() -> object:
    raise errors.StoppedRun("runs/shop-din", 480, signal.SIGTERM)


def _answer() -> object:
    from longrec.serve.request_json import decode_request

    return decode_request(b'{"user": 7, "candidates": [11], "at": "31.1.2026", "contxt": {}}')


def _read_log() -> object:
    from longrec.data.log import Log
    from longrec.features.schema import Schema

    schema = {"user": "u", "item": "i", "label": "y", "time": "t", "features": {"i": {"kind": "id"}}}
    return Log.open("prepared/3f2a", parse(Schema, schema, "shop.schema.yaml"))


def _lack_space() -> object:
    error = resource_error(OSError(errno.ENOSPC, "No space left on device"), "prepared/3f2a/time.bin")
    assert error is not None
    raise error


EXAMPLES: dict[str, Callable[[], object]] = {
    "ConfigError": lambda: parse(FitConfig, {"epoch": 2, "lr": -1}, "din.yaml", "fit"),
    "UnknownName": lambda: describe("dinn"),
    "DataError": _read_log,
    "StoreError": _open_store,
    "ServerError": _call_server,
    "RunError": _open_run,
    "StoppedRun": _stop,
    "BundleError": _open_bundle,
    "ResourceError": _lack_space,
    "RequestError": _answer,
}


def format_page() -> str:
    """Return the page of all errors."""
    lines = ["# Errors", "", "<!-- Written by `make docs`; do not edit. -->", "", INTRO, ""]
    for name, error in list_errors().items():
        lines += [f"## {name}", "", to_markdown(_first_paragraphs(error)), ""]
        base = error.__bases__[0].__name__
        if base != "LongRecError":
            lines += [f"It is a {base}.", ""]
        lines += ["```text", f"longrec: {name}: {_write_example(name)}", "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def list_errors() -> dict[str, type[LongRecError]]:
    """Return the classes of ``longrec.errors`` that are raised, in the order of the module."""
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    return {n: c for n, c in classes.items() if issubclass(c, LongRecError) and c is not LongRecError}


def _first_paragraphs(error: type[LongRecError]) -> str:
    return inspect.cleandoc(error.__doc__ or "").partition("\n\nArgs:")[0]


def _write_example(name: str) -> str:
    """Return the message of an error that this version raises."""
    import contextlib

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(Path(folder)):
        try:
            EXAMPLES[name]()
        except LongRecError as error:
            if type(error).__name__ != name:
                raise
            return str(error)
    raise AssertionError(f"the example of {name} raises nothing")
