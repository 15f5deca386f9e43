"""Conformance suite of models. :func:`check_model` checks that a model keeps the rules that all models keep."""

from __future__ import annotations

from longrec.testing.case import Case
from longrec.testing.expect import ConformanceError
from longrec.testing.suite import check_case, check_model

__all__ = ["Case", "ConformanceError", "check_case", "check_model"]
