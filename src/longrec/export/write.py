"""Export: a trained ranker and its prepared log become a bundle, checked before it appears."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from longrec.errors import BundleError
from longrec.export import bundle
from longrec.export.bundle import Manifest
from longrec.export.golden import Golden
from longrec.export.inputs import Input, inputs_of
from longrec.export.parity import TOLERANCE, Answer, golden_parity, shapes_parity
from longrec.export.program import Shared, trace
from longrec.export.runtime import Program
from longrec.features.fitted import FittedSchema
from longrec.features.table import EntityTable
from longrec.features.view import event_columns
from longrec.models.base import Ranker, name_of
from longrec.progress import Progress
from longrec.store.segment import Segment


def export(
    model: Ranker,
    log: str | Path,
    out: str | Path,
    golden: Sequence[Golden],
    answer: Answer,
    *,
    fitted: FittedSchema | None = None,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a bundle, or nothing.

    Args:
        log: folder of the prepared log: schema, users, items and past events are copied from it.
        golden: requests with offline scores, see ``offline.golden``.
        answer: the online path, ``longrec.serve.service.replay`` (this room may not import that one).
        fitted: the schema the model was trained with; the log's own when not given. One prepared log serves schemas
            that differ in widths, pooling and history lengths.
        name: of the model in URLs; that of its file when not given.
        source: what the manifest tells about the origin: run, revision, date.
        overwrite: replace a bundle that is already there.

    Raises:
        BundleError: a folder in the way, a schema that is not the model's, a model that cannot be traced, or scores
            that differ.
    """
    log, out = Path(log), Path(out)
    if out.exists() and not (overwrite and (out / bundle.MANIFEST).is_file()):
        do = "choose another name" if not (out / bundle.MANIFEST).is_file() else "choose another name, or overwrite it"
        raise BundleError(str(out), "it is already there", "a new folder", do)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        build = Path(scratch) / "bundle"
        own = fitted or FittedSchema.load(log / bundle.SCHEMA)
        with Progress(5, f"export {name or name_of(model)}", "steps") as progress:
            manifest = _fill(build, model, own, log, golden, answer, name or name_of(model), source or {}, progress)
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        build.rename(out)
    return manifest


def _fill(
    build: Path,
    model: Ranker,
    fitted: FittedSchema,
    log: Path,
    golden: Sequence[Golden],
    answer: Answer,
    name: str,
    source: Mapping[str, Any],
    progress: Progress,
) -> Manifest:
    _check_schema(fitted, model)
    build.mkdir()
    fitted.save(build / bundle.SCHEMA)
    for part in (bundle.USERS, bundle.ITEMS):
        shutil.copytree(log / part, build / part)
    events = 0
    if model.reads_history and not fitted.schema.prejoined and fitted.schema.histories:
        history = _history(fitted, Segment.open(log / "events"))
        history.write(build / bundle.HISTORY)
        events = len(history)
    inputs = inputs_of(fitted.fields(), histories=model.reads_history)
    progress.advance(note="tables copied, tracing")
    trace(model, inputs, build / bundle.PROGRAM)
    progress.advance(note="traced, comparing with the model")
    program = Program(build / bundle.PROGRAM)
    read = [entry for entry in inputs if entry.name in program.names]
    shapes = shapes_parity(Shared(model, inputs).eval(), program)
    progress.advance(note="scores alike, writing checksums")
    (build / bundle.GOLDEN).write_bytes(msgspec.json.encode(list(golden)))
    counts = {
        "users": len(EntityTable.load(build / bundle.USERS)) - 1,
        "items": len(EntityTable.load(build / bundle.ITEMS)) - 1,
        "events": events,
        "features": len(fitted.fields().features),
        "histories": len({entry.group for entry in read if entry.group.startswith("h.")}),
    }
    parity: dict[str, Any] = {"tolerance": TOLERANCE, "shapes": shapes, "golden": {"requests": len(golden)}}
    manifest = _manifest(build, name, read, counts, source, parity)
    bundle.write_manifest(build, manifest)
    progress.advance(note="replaying golden requests")
    # The online path opens only what is complete; its own figure goes into a second, final manifest.
    parity["golden"]["worst"] = golden_parity(build, golden, answer)
    manifest = msgspec.structs.replace(manifest, parity=parity)
    bundle.write_manifest(build, manifest)
    progress.advance(note="online and offline score alike")
    return manifest


def _manifest(
    build: Path,
    name: str,
    inputs: list[Input],
    counts: dict[str, int],
    source: Mapping[str, Any],
    parity: dict[str, Any],
) -> Manifest:
    return Manifest(
        format=bundle.FORMAT,
        version=version("longrec"),
        model=name,
        kind="ranker",
        inputs=inputs,
        counts=counts,
        files=bundle.file_facts(build),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=dict(source),
        parity=parity,
    )


def _check_schema(fitted: FittedSchema, model: Ranker) -> None:
    schema = fitted.schema
    if fitted.fields() != model.fields:
        raise BundleError(
            "schema",
            "its fields are not those of the model",
            "the schema the model was trained with",
            "give the fitted schema of the run",
        )
    # One request has one context: a feature of the item that lies in the events cannot differ between candidates.
    wrong = [name for name in fitted.of_table("event") if schema.column(name) == schema.item]
    if wrong:
        raise BundleError(
            f"schema: feature {wrong[0]!r}",
            "it reads the item with table: event",
            "table: item",
            "set table: item and train again",
        )


def _history(fitted: FittedSchema, events: Segment) -> Segment:
    """The past, with just the columns that histories read."""
    schema = fitted.schema
    values = event_columns(fitted)
    wanted = [
        "item",
        *values,
        *(f"known.{name}" for name in values if schema.features[name].known_at is not None),
        *(f"where.{name}" for name, history in schema.histories.items() if history.where),
    ]
    columns = {name: np.asarray(events.columns[name]) for name in wanted}
    return Segment(events.offsets, events.times, columns)
