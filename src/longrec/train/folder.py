"""Run folders: made whole or not at all, never overwritten, one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from longrec.data.log import Log
from longrec.errors import RunError
from longrec.train.checkpoint import replace_file
from longrec.train.job import Job
from longrec.train.machine import describe_environment
from longrec.train.seen_labels import KEY, SeenLabels

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart there
    fcntl = None  # type: ignore[assignment]


def create_run_folder(job: Job, log: Log, seen: SeenLabels, warnings: Sequence[str] = (), notes: str = "") -> Path:
    """A run folder with everything that is known before training; it appears whole or not at all.

    Args:
        seen: the labels that the weights will have seen.
        warnings: sentences about the run that it starts from.
        notes: what of another tool's configuration is not carried as it is; kept as ``NOTES.md``.

    Raises:
        RunError: the folder that the job names is there already.
    """
    runs = Path(job.fit.runs)
    runs.mkdir(parents=True, exist_ok=True)
    short = str(job.model["name"]).rpartition(".")[2]
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
    """A place to write a store to; the folder takes its name once all of it is there, so that no half is ever read.

    An address, and a folder that is there already (which nobody may write to), are given as they are.
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
    """What the results of a run must say of the run that it started from."""
    return list(json.loads((folder / "log.json").read_text(encoding="utf-8")).get("warnings", ()))


def require_free(job: Job) -> None:
    """Raise a RunError when the run folder that a job names is there already."""
    if job.name is not None and (folder := Path(job.fit.runs) / job.name).exists():
        raise _name_taken_error(folder)


def record_resume(folder: Path, job: Job) -> None:
    """Keep in ``environment.json`` what is no longer as it was when the run began: only the same resumes to the bit."""
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
        return RunError(str(folder), "a finished run of this name", "a new name", "give another name, or remove it")
    if (folder / "config.yaml").exists():
        do = f"continue it with --resume {folder}, or remove it"
        return RunError(str(folder), "a run of this name that has not ended", "a new name", do)
    return RunError(str(folder), "something that is no run", "a free name", "give another name")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run folder; a killed one lets go of it by itself."""
    with (folder / ".lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    str(folder), "another process is training this run", "a run at rest", "wait until it ends"
                ) from None
        yield
