"""Import of onnxruntime."""

from __future__ import annotations

import importlib
import os
from typing import Any

_NO_REPORTS = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """Import onnxruntime where it is first used: it may start threads, which a process that forks may not have.

    It sends no reports on its use to its makers, unless the environment variable ``ORT_DISABLE_TELEMETRY`` is 0.
    """
    os.environ.setdefault(_NO_REPORTS, "1")  # read once, when it is imported
    return importlib.import_module("onnxruntime")
