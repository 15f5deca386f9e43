"""Machine of a run: threads, allocator, and the record of its environment."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("longrec", "torch", "numpy", "pyarrow", "duckdb", "pydantic", "safetensors")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE, _LARGEST_OLD_GLIBC = 1 << 30, 1 << 25


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` torch threads, and restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_large_blocks() -> bool:
    """Make glibc keep freed blocks instead of returning them to the system after every batch.

    Saves 7-13 % on ragged models, whose buffers would page-fault again in each step. Returns False without effect if
    the C library has no ``mallopt``.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # glibc before 2.35 refuses more than 32 MiB.
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (_LARGE, _LARGEST_OLD_GLIBC))
    return mapped and mallopt(_M_TRIM_THRESHOLD, _LARGE) == 1


def describe_start() -> dict[str, str]:
    """Return the time and the command that started a run."""
    started = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
    return {"started": started, "command": format_command(sys.argv)}


def format_command(arguments: Sequence[str]) -> str:
    """Return a command line. Arguments of other programs than ``longrec`` are left out.

    >>> format_command(["longrec", "train", "a b.yaml"]), format_command(["longrec/__main__.py", "check", "a.yaml"])
    ("longrec train 'a b.yaml'", 'longrec check a.yaml')
    >>> format_command(["fit.py", "--key", "secret"]), format_command(["pytest/__main__.py", "-x"])
    ('fit.py', 'pytest')
    """
    path = Path(arguments[0] if arguments else "")
    program = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([program, *arguments[1:]]) if program == "longrec" else program


def describe_environment(threads: int) -> dict[str, Any]:
    """Return what the results depend on besides the config: versions, processor, threads, git revision."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _read_cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "packages": {name: version for name in PACKAGES if (version := _find_version(name))},
        "git": read_revision(Path.cwd()),
    }


def read_revision(folder: Path) -> dict[str, Any] | None:
    """Return the git revision of a folder and a flag for changed files. None outside a repository."""
    try:
        results = [
            subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if results[0].returncode:
        return None
    return {"revision": results[0].stdout.strip(), "changed": bool(results[1].stdout.strip())}


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
