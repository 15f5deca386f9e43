"""LongRec: recommendation from long user histories.

From an event log to point-in-time correct histories, a trained model, an exported bundle and a server.
Names are imported on first use, so that ``import longrec`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec.commands import check, compare, compress, encode, evaluate, export, predict, prepare, report, train
    from longrec.demo import demo
    from longrec.serve.client import client
    from longrec.train.finished_run import open_run

# Threads that spin at a barrier cost up to 25-fold on a busy machine. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.7.0"
__all__ = [
    "check",
    "client",
    "compare",
    "compress",
    "demo",
    "encode",
    "evaluate",
    "export",
    "open_run",
    "predict",
    "prepare",
    "report",
    "train",
]

_OTHER_MODULES = {"client": "longrec.serve.client", "demo": "longrec.demo", "open_run": "longrec.train.finished_run"}


def _import_name(name: str) -> Any:
    return getattr(importlib.import_module(_OTHER_MODULES.get(name, "longrec.commands")), name)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'longrec' has no attribute {name!r}")
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


class _CallableModule(ModuleType):
    """Package with the name of a command: ``longrec.train`` is a package and can be called."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return _import_name(self.__name__.rpartition(".")[2])(*args, **settings)


class _Package(ModuleType):
    """The package ``longrec``. The import system binds each subpackage to it, which must not hide a command."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
