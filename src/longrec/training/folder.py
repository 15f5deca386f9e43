"""Run folders: created atomically, never overwritten, used by one process at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from longrec.data.log import Log
from longrec.errors import RunError
from longrec.training.checkpoint import replace_file
from longrec.training.hook_record import HOOKS
from longrec.training.job import Job
from longrec.training.machine import describe_environment
from longrec.training.seen_labels import KEY, SeenLabels

try:
    import fcntl
except ImportError:  # Windows: runs are not locked there
    fcntl = None  # type: ignore[assignment]


def create_run_folder(
    job: Job,
    log: Log,
    seen: SeenLabels,
    warnings: Sequence[str] = (),
    notes: str = "",
    hooks: Mapping[str, Any] | None = None,
) -> Path:
    """Create a run folder atomically, with all facts that precede training.

    Args:
        seen: labels that the run is trained and validated on.
        warnings: sentences about the run that it starts from.
        notes: differences from the configuration of another tool, kept as ``NOTES.md``.
        hooks: names of the functions of one's own, kept as ``hooks.json`` if there are any.

    Raises:
        RunError: the folder of the job exists already.
    """
    runs = Path(job.fit.runs)
    runs.mkdir(parents=True, exist_ok=True)
    short = re.split("[.:]", str(job.model["name"]))[-1].strip("_") or "model"
    partial = runs / f".partial-{os.getpid()}-{threading.get_ident()}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        log.fitted.save(partial / "schema")
        (partial / "environment.json").write_text(json.dumps(describe_environment(job.fit.threads), indent=1))
        about = {"path": str(log.folder.absolute()), "digest": log.folder.name, "samples": log.sample_count}
        about |= {"left_out": log.excluded_counts, KEY: seen.to_dict(), "warnings": list(warnings)}
        (partial / "log.json").write_text(json.dumps(about, indent=1))
        if hooks:
            (partial / HOOKS).write_text(json.dumps(hooks, indent=1), encoding="utf-8")
        if notes:
            (partial / "NOTES.md").write_text(notes, encoding="utf-8")
        for number in range(1, 1_000_000):
            folder = runs / (job.name or f"{short}-{number}")
            (partial / "config.yaml").write_text(replace(job, name=folder.name).to_yaml(), encoding="utf-8")
            if not folder.exists():
                try:
                    partial.rename(folder)
                except OSError:
                    if not folder.exists():
                        raise
                else:
                    return folder
            if job.name is not None:
                break
        raise _name_taken_error(folder)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


@contextmanager
def write_atomically(into: str | Path) -> Iterator[str | Path]:
    """Provide a path for a store. The folder is renamed once it is complete, so that no partial store is ever read.

    An address, and an existing folder (which nobody may write to), are returned unchanged.
    """
    if "://" in str(into) or Path(into).exists():
        yield into
        return
    target = Path(into)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def warm_start_warnings(folder: Path) -> list[str]:
    """Return the warnings about the run that a run started from."""
    return list(json.loads((folder / "log.json").read_text(encoding="utf-8")).get("warnings", ()))


def require_free(job: Job) -> None:
    """Raise a RunError if the run folder of a job exists already."""
    if job.name is not None and (folder := Path(job.fit.runs) / job.name).exists():
        raise _name_taken_error(folder)


def record_resume(folder: Path, job: Job) -> None:
    """Record changes since the start of a run in ``environment.json``. Only the same environment resumes to the bit."""
    path = folder / "environment.json"
    recorded, now = json.loads(path.read_text()), describe_environment(job.fit.threads)
    changed = {key: value for key, value in now.items() if recorded.get(key) != value}
    if changed:
        recorded.setdefault("resumed", []).append(changed)
        replace_file(path, lambda partial: _write_text(partial, json.dumps(recorded, indent=1)))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _name_taken_error(folder: Path) -> RunError:
    if (folder / "results.json").exists():
        return RunError(str(folder), "a finished run of this name", "a new name", "choose another name, or remove it")
    if (folder / "config.yaml").exists():
        do = f"continue it with --resume {folder}, or remove it"
        return RunError(str(folder), "a run of this name that has not ended", "a new name", do)
    return RunError(str(folder), "something that is no run", "a free name", "choose another name")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder against a second process. The lock of a killed process is released by itself."""
    with (folder / ".lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    str(folder), "another process is training this run", "an idle run", "wait until it ends"
                ) from None
        yield
