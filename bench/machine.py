"""Hardware description and Markdown output of benchmark results."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "longrec" / "bench"


def get_processor_name() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def get_hardware_name() -> str:
    """Return a short name of the hardware for file names, such as ``2cpu-amd-epyc-9575f``."""
    name = re.sub(r"\(.*?\)|processor|cpu|@.*|\d+-core", " ", get_processor_name().lower())
    return f"{os.cpu_count()}cpu-" + "-".join(re.findall(r"[a-z0-9]+", name))[:32].strip("-")


def read_load() -> str:
    """Return the load of the last minute. Above the number of cores, wall times are pessimistic."""
    return f"{os.getloadavg()[0]:.1f}"


@dataclass
class Usage:
    """Resources that one process used."""

    wall: float
    cpu: float
    peak_mb: float
    output: str


def measure(command: list[str], **environment: str) -> Usage:
    """Run a command and measure it, with its threads and children and its peak resident memory.

    Raises:
        SystemExit: the command fails. The end of its output is shown.
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command[:3])} ... ended with {process.returncode}\n{output}\n{errors.read()[-4_000:]}")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return Usage(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / scale, output)


def format_table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def write(task: str, text: str) -> Path:
    """Write a result to ``task_hardware_date.md`` and print it."""
    today = datetime.date.today().isoformat()
    versions = ", ".join(f"{name} {version(name)}" for name in ("longrec", "torch", "numpy", "pyarrow", "duckdb"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    foot = (
        f"{get_processor_name()}, {os.cpu_count()} cores, {memory:.0f} GiB; {platform.system()}, Python "
        f"{platform.python_version()}; {versions}; {today}; load at the end {read_load()}."
    )
    path = RESULTS / f"{task}_{get_hardware_name()}_{today}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{text.strip()}\n\n{foot}\n", encoding="utf-8")
    print(f"\n{text.strip()}\n\n{foot}\n\nwritten to {path}")
    return path
