"""Token source that ``longrec compress`` has stored beside its tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from longrec.data.log import Log
from longrec.errors import DataError, RunError
from longrec.features.fitted_schema import FittedSchema
from longrec.models.core import artifact
from longrec.models.core.kinds import Encoder

SOURCE_FILE = "source.json"


@dataclass(frozen=True)
class TokenSource:
    """Source of a token store.

    Attributes:
        folder: its folder.
        run: name of the run that trained it.
        model: the model after the last block, in eval mode.
        log: the prepared log it was trained on.
        version: number of the version that it writes.
        mean, std: scale of the vectors that it writes. None for raw vectors.
    """

    folder: Path
    run: str
    model: Encoder
    log: Log
    version: int
    mean: list[float] | None
    std: list[float] | None


def find_source(path: str | Path) -> Path | None:
    """Return the folder of a source: ``path`` itself, or ``source`` inside a token store. None if neither is one."""
    for folder in (Path(path) / "source", Path(path)):
        if (folder / SOURCE_FILE).is_file():
            return folder
    return None


def open_source(folder: Path) -> TokenSource:
    """Open the source in a folder that ``compress`` wrote.

    Raises:
        RunError: it cannot be read, or its log is missing.
    """
    try:
        about = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        run, version, path = str(about["run"]), int(about["version"]), Path(about["log"])
        mean, std = about["mean"], about["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(str(folder / SOURCE_FILE), f"not readable ({error})", "the file of longrec compress") from None
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
