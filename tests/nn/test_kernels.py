"""Tests of the one place that chooses an implementation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import longrec
from longrec.nn import kernels


def test_no_other_file_tests_the_tracer_or_autocast() -> None:
    package = Path(longrec.__file__).parent
    testing = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search("is_compiling|is_autocast_enabled", path.read_text(encoding="utf-8"))
    ]
    assert testing == ["nn/kernels.py"]


def test_kernels_by_rows_autocast_device_and_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(512, 1)
    assert kernels.choose(x) == kernels.choose(x, 512) == "cpu"
    assert kernels.choose(x, 513) == "plain"
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.choose(x) == "plain"
        assert kernels.choose(x, casts=False) == "cpu"
    assert kernels.choose(torch.zeros(1, device="meta")) == "cuda"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.is_traced()
    assert kernels.choose(x) == kernels.choose(torch.zeros(1, device="meta")) == "traced"
