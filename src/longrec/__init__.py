"""LongRec: recommendation from long user histories.

From an event log to point-in-time correct histories, a trained model, an exported bundle and a server.
Names are imported on first use, so that ``import longrec`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec import errors, metrics, models
    from longrec.audits import audit
    from longrec.catalog_command import change_catalog
    from longrec.commands import check, compare, compress, encode, evaluate, export, predict, report, train
    from longrec.data.settings import Source, Split
    from longrec.diagnose_command import diagnose
    from longrec.evaluation.candidate_log import write_candidates
    from longrec.evaluation.compare import compare_pipelines
    from longrec.evaluation.pipeline_evaluation import evaluate_pipeline
    from longrec.events_command import export_events
    from longrec.features.schema import Condition, Feature, History, Label, Schema, TimeColumn
    from longrec.fitting import fit
    from longrec.metrics.own import Metric
    from longrec.off_policy_command import estimate_policy
    from longrec.prepared_log import PreparedLog, prepare
    from longrec.serve.client import client
    from longrec.serve.local_pipeline import Pipeline, open_pipeline
    from longrec.stream_command import stream
    from longrec.tokenize_command import tokenize
    from longrec.training.finished_run import Run, open_run
    from longrec.training.saved_model import load_model, save_model
    from longrec.training.settings import EvaluateConfig, FitConfig
    from longrec.warm_command import warm

# Threads that spin at a barrier cost up to 25-fold on a busy machine. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.16.1"

_MODULES = {
    "longrec.audits": ("audit",),
    "longrec.catalog_command": ("change_catalog",),
    "longrec.commands": ("check", "compare", "compress", "encode", "evaluate", "export", "predict", "report", "train"),
    "longrec.data.settings": ("Source", "Split"),
    "longrec.diagnose_command": ("diagnose",),
    "longrec.evaluation.candidate_log": ("write_candidates",),
    "longrec.evaluation.compare": ("compare_pipelines",),
    "longrec.evaluation.pipeline_evaluation": ("evaluate_pipeline",),
    "longrec.events_command": ("export_events",),
    "longrec.features.schema": ("Condition", "Feature", "History", "Label", "Schema", "TimeColumn"),
    "longrec.fitting": ("fit",),
    "longrec.metrics.own": ("Metric",),
    "longrec.off_policy_command": ("estimate_policy",),
    "longrec.prepared_log": ("PreparedLog", "prepare"),
    "longrec.serve.client": ("client",),
    "longrec.serve.local_pipeline": ("Pipeline", "open_pipeline"),
    "longrec.stream_command": ("stream",),
    "longrec.tokenize_command": ("tokenize",),
    "longrec.training.finished_run": ("Run", "open_run"),
    "longrec.training.saved_model": ("load_model", "save_model"),
    "longrec.training.settings": ("EvaluateConfig", "FitConfig"),
    "longrec.warm_command": ("warm",),
}
_SUBPACKAGES = ("errors", "metrics", "models")
_NAMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "Condition",
    "EvaluateConfig",
    "Feature",
    "FitConfig",
    "History",
    "Label",
    "Metric",
    "Pipeline",
    "PreparedLog",
    "Run",
    "Schema",
    "Source",
    "Split",
    "TimeColumn",
    "audit",
    "change_catalog",
    "check",
    "client",
    "compare",
    "compare_pipelines",
    "compress",
    "diagnose",
    "encode",
    "errors",
    "estimate_policy",
    "evaluate",
    "evaluate_pipeline",
    "export",
    "export_events",
    "fit",
    "load_model",
    "metrics",
    "models",
    "open_pipeline",
    "open_run",
    "predict",
    "prepare",
    "report",
    "save_model",
    "stream",
    "tokenize",
    "train",
    "warm",
    "write_candidates",
]


def _import_name(name: str) -> Any:
    return getattr(importlib.import_module(_NAMES[name]), name)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"longrec.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'longrec' has no attribute {name!r}")
    return _import_name(name)


def __dir__() -> list[str]:
    return sorted(
        [
            *__all__,
            "__version__",
        ]
    )
