"""Section of a page with the origin of each run: command, date, versions, machine and settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from longrec.progress import duration
from longrec.report.markup import format_grid
from longrec.report.run import RunView

_VERSIONS = ("longrec", "torch", "numpy", "pyarrow", "duckdb")


def format_origin(runs: Sequence[RunView]) -> str:
    """Return a table of the origins, and the settings of each run, folded."""
    described = [_describe(run) for run in runs]
    keys = [
        key for key in dict.fromkeys(key for one in described for key in one) if any(one.get(key) for one in described)
    ]
    cells = [[_format_value(key, one.get(key, "")) for one in described] for key in keys]
    names = [run.name for run in runs]
    heads = [f"{escape(run.name)}{_format_model(run)}" for run in runs]
    grid = format_grid("", names, heads, [escape(key) for key in keys], cells, "dense") if keys else ""
    folded = "".join(
        f"<details><summary>{escape(run.name)}{_format_model(run)}</summary><pre>{escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    )
    if folded:
        folded = f'<p class="soft small">Settings, with every default written out:</p>{folded}'
    table = f'<div class="scroll">{grid}</div>' if grid else ""
    return f"<section><h2>How it was trained</h2>{table}{folded}</section>" if grid or folded else ""


def _describe(run: RunView) -> dict[str, str]:
    environment, progress = run.environment, run.progress
    packages = environment.get("packages", {})
    return {
        "Command": str(environment.get("command", "")),
        "Started": str(environment.get("started", "")),
        "Training time": "" if run.seconds is None else duration(run.seconds),
        "Steps": _format_steps(progress),
        "Versions": ", ".join(f"{name} {packages[name]}" for name in _VERSIONS if name in packages),
        "Python": str(environment.get("python", "")),
        "Machine": ", ".join(str(environment[key]) for key in ("cpu", "platform") if environment.get(key)),
        "Git revision": _format_revision(environment.get("git")),
    }


def _format_steps(progress: Any) -> str:
    if not progress.get("steps"):
        return ""
    best = f", best validation at step {progress['best_step']:,}" if progress.get("best_step") else ""
    stopped = ", stopped early" if progress.get("stopped") == "patience" else ""
    return f"{progress['steps']:,}{stopped}{best}"


def _format_revision(git: Any) -> str:
    if not git:
        return ""
    return f"{git['revision'][:12]}{' with changes' if git.get('changed') else ''}"


def _format_value(key: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if key == "Command" and value else escape(value)


def _format_model(run: RunView) -> str:
    return "" if run.model == run.name else f' <span class="soft">({escape(run.model)})</span>'
