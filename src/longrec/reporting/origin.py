"""Section of a page with the origin of each run: command, date, versions, machine and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longrec.progress import duration
from longrec.reporting.markup import format_grid
from longrec.reporting.run import RunView

_SIDE_BY_SIDE = 3
_VERSIONS = ("longrec", "torch", "numpy", "pyarrow", "duckdb")


def format_origin(runs: Sequence[RunView]) -> str:
    """Return the origins of runs side by side, and the settings of each, folded. Those of many runs are folded too."""
    described = [_describe(run) for run in runs]
    is_wide = len(runs) > _SIDE_BY_SIDE
    table = "" if is_wide else _format_table(runs, described)
    folded = ""
    for run, own in zip(runs, described):
        content = _format_table([run], [own]) if is_wide else ""
        content += f"<pre>{escape(run.config)}</pre>" if run.config else ""
        if content:
            folded += (
                f"<details><summary>{escape(run.name)}{_format_model(run)}</summary><div>{content}</div></details>"
            )
    if folded:
        folded = f'<p class="soft small">Settings, with every default written out:</p>{folded}'
    return f"<section><h2>How it was trained</h2>{table}{folded}</section>" if table or folded else ""


def _format_table(runs: Sequence[RunView], described: Sequence[Mapping[str, str]]) -> str:
    """Return a table with one column per run. Empty without any value."""
    keys = [key for key in described[0] if any(one[key] for one in described)]
    if not keys:
        return ""
    cells = [[_format_value(key, one[key]) for one in described] for key in keys]
    heads = [f"{escape(run.name)}{_format_model(run)}" for run in runs]
    grid = format_grid("", [run.name for run in runs], heads, [escape(key) for key in keys], cells, "dense")
    return f'<div class="scroll">{grid}</div>'


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
