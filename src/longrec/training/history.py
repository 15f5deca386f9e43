"""Training losses and validations of a run: the lines of ``metrics.jsonl`` as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longrec.errors import RunError
from longrec.tabular import Columns, Tabular

_FIRST = ("step", "epoch", "split", "loss")


class History(Tabular):
    """Training losses and validations of a run.

    Attributes:
        lines: one mapping per line, in the order of the steps: ``step``, ``epoch``, ``split`` (train or valid),
            ``seconds``, and ``loss`` (the mean since the line before) or the metrics of a validation.
    """

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def to_columns(self) -> Columns:
        """Return one row per line. What a line does not have is None."""
        keys = dict.fromkeys([*_FIRST, *(key for line in self.lines for key in line if key != "seconds"), "seconds"])
        return {key: [line.get(key) for line in self.lines] for key in keys}


def read_history(folder: Path) -> History:
    """Read the history of a run folder.

    Raises:
        RunError: no such file, or lines that cannot be read.
    """
    path = folder / "metrics.jsonl"
    try:
        return History([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    except (OSError, ValueError) as error:
        raise RunError(
            str(path), f"not readable ({error})", "losses and validations", "copy the complete run"
        ) from None
