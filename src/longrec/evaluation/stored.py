"""Stored evaluations of pipelines, as a comparison reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.errors import RunError
from longrec.evaluation.results import ITEMS, REQUESTS, RESULTS


@dataclass(frozen=True)
class StoredEvaluation:
    """What a comparison reads of an evaluation: the values of its pages by request."""

    folder: Path
    results: Mapping[str, Any]
    requests: pa.Table
    items: pa.Table

    @classmethod
    def open(cls, folder: str | Path) -> StoredEvaluation:
        """Open the folder of an evaluation.

        Raises:
            RunError: no evaluation, or files that cannot be read.
        """
        path = Path(folder)
        if not is_evaluation(path):
            do = "evaluate the pipeline first: longrec evaluate PIPELINE.yaml --requests RUN"
            raise RunError(str(path), "no results of a pipeline", "the folder that longrec evaluate has written", do)
        try:
            results = json.loads((path / RESULTS).read_text(encoding="utf-8"))
            requests, items = pq.read_table(path / REQUESTS), pq.read_table(path / ITEMS)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise RunError(str(path), f"not readable ({reason})", "results of a pipeline", "evaluate again") from None
        return cls(path, results, requests, items)


def is_evaluation(path: str | Path) -> bool:
    """Return True for the folder of an evaluation of a pipeline."""
    file = Path(path) / RESULTS
    return file.is_file() and (Path(path) / REQUESTS).is_file()
