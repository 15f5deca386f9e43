"""A source as ``longrec compress`` left it beside its tokens, opened again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from longrec.data.log import Log
from longrec.errors import DataError, RunError
from longrec.features.fitted_schema import FittedSchema
from longrec.models.core import artifact
from longrec.models.core.base import Encoder

SOURCE_FILE = "source.json"


@dataclass(frozen=True)
class TokenSource:
    """The source of a token store.

    Attributes:
        folder: where it lies.
        run: who trained it.
        model: as the last block left it, in eval mode.
        log: the prepared log it was trained on.
        version: the number under which it writes.
        mean, std: the scale on which it writes; None for vectors as they are.
    """

    folder: Path
    run: str
    model: Encoder
    log: Log
    version: int
    mean: list[float] | None
    std: list[float] | None


def find_source(path: str | Path) -> Path | None:
    """The folder of a source: ``path`` itself, or ``source`` inside a token store; None where neither is one."""
    for folder in (Path(path) / "source", Path(path)):
        if (folder / SOURCE_FILE).is_file():
            return folder
    return None


def open_source(folder: Path) -> TokenSource:
    """Open what ``compress`` left.

    Raises:
        RunError: it cannot be read, or its log is gone.
    """
    try:
        about = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        run, version, path = str(about["run"]), int(about["version"]), Path(about["log"])
        mean, std = about["mean"], about["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(str(folder / SOURCE_FILE), f"not readable ({error})", "what longrec compress writes") from None
    try:
        log = Log.open(path, FittedSchema.load(folder / "schema").schema)
    except DataError as error:
        description = f"its prepared log cannot be opened ({error.where}: {error.found})"
        raise RunError(
            str(folder), description, "the log it was trained on", "prepare it again, and compress"
        ) from None
    model = artifact.load(folder / "model").eval()
    if not isinstance(model, Encoder):
        raise RunError(str(folder), f"a {type(model).__name__}", "an encoder", "compress again")
    return TokenSource(folder, run, model, log, version, mean, std)
