"""A process that logs an item every millisecond until it is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from longrec.serve.impressions import ImpressionWriter, build_arrow_schema

SCHEMA = build_arrow_schema(False, True, False, ["score_rank"])


def make_row(number: int) -> dict[str, Any]:
    return {"request": f"r{number}", "user": number, "timestamp": 1_600_000_000_000 + number, "item": f"i{number}",
            "position": 1, "score_rank": 0.5}  # fmt: skip


def write_endlessly(folder: Path) -> None:
    writer, number = ImpressionWriter(folder, SCHEMA, 0.05, 60.0), 0
    while True:
        number += 1
        writer.write([make_row(number)])
        print(number, time.monotonic(), flush=True)
        time.sleep(0.001)


if __name__ == "__main__":
    write_endlessly(Path(sys.argv[1]))
