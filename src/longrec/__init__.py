"""LongRec: recommendation from long user histories.

From an event log to point-in-time correct histories, a trained model, an exported bundle and a server.
Names are imported when they are first used, so that ``import longrec`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Threads that spin at a barrier cost up to 25-fold beside a busy neighbour; this must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOME = {
    "check": "longrec.verbs",
    "client": "longrec.serve.client",
    "compare": "longrec.verbs",
    "demo": "longrec.demo",
    "evaluate": "longrec.verbs",
    "export": "longrec.verbs",
    "open_run": "longrec.train.run",
    "predict": "longrec.verbs",
    "prepare": "longrec.verbs",
    "train": "longrec.verbs",
}
__all__ = ["check", "client", "compare", "demo", "evaluate", "export", "open_run", "predict", "prepare", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longrec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
