"""Export of a trained model and its prepared log as a bundle.

The bundle is written to a temporary folder, checked there, and renamed to its path only if all checks pass.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from longrec.errors import BundleError
from longrec.exploration.explorer import Explorer
from longrec.exporting import bundle
from longrec.exporting.bundle import EncoderFacts, Manifest
from longrec.exporting.catalog import check_catalog
from longrec.exporting.explorer_facts import describe_explorer
from longrec.exporting.generator_programs import describe_generator
from longrec.exporting.golden import GoldenRequest
from longrec.exporting.inputs import ITEMS_PROGRAM, ProgramFacts, list_inputs
from longrec.exporting.item_columns import write_item_columns
from longrec.exporting.item_index import write_index
from longrec.exporting.parity import TOLERANCE, ReplayFunction, check_golden, check_shapes
from longrec.exporting.program import trace_module
from longrec.exporting.programs import build_programs
from longrec.exporting.runtime import Program
from longrec.exporting.states import check_states, describe_states
from longrec.exporting.store_copies import copy_knowledge, copy_stores, copy_tokens
from longrec.exporting.weights import write_programs
from longrec.features.entity_table import EntityTable
from longrec.features.fields import AVAILABLE
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER, list_event_columns
from longrec.features.vocabulary import Keys
from longrec.index.build import IndexFacts, IndexSettings, Queries
from longrec.models.core.base import Model
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Encoder, Ranker, Reranker, Retriever
from longrec.models.core.registry import name_of
from longrec.models.core.stateful import StatefulRanker
from longrec.progress import Progress
from longrec.store.knowledge_store import KnowledgeStore
from longrec.store.segment import Segment
from longrec.store.token_store import TokenStore


@dataclass(frozen=True)
class ExternalStores:
    """Stores that other models wrote and that the exported model reads.

    Attributes:
        tokens: store of each token history.
        knowledge: store of each feature of kind ``embedding``.
    """

    tokens: Mapping[str, TokenStore] = field(default_factory=dict)
    knowledge: Mapping[str, KnowledgeStore] = field(default_factory=dict)


@dataclass(frozen=True)
class CatalogOptions:
    """What a bundle holds about its items, besides the encoded table.

    Attributes:
        columns: raw columns of the item table, see ``exporting/item_columns.py``.
        index: settings of the index of a vector retriever.
        queries: function that returns the vectors of requests, float32 ``[R, K, D]``, to measure its recall.
    """

    columns: pa.Table | None = None
    index: IndexSettings = field(default_factory=IndexSettings)
    queries: Queries | None = None


def export(
    model: Model,
    log: str | Path,
    out: str | Path,
    golden: Sequence[GoldenRequest],
    replay: ReplayFunction,
    *,
    fitted: FittedSchema | None = None,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    external_stores: ExternalStores | None = None,
    encoder: EncoderFacts | None = None,
    catalog: CatalogOptions | None = None,
    states: bool = False,
    explorer: Explorer | None = None,
) -> Manifest:
    """Write a bundle, or nothing if a check fails.

    Args:
        model: a ranker, a re-ranker, a retriever or an encoder. Of a model that trains another one, that is exported
            (``Model.served``).
        log: folder of the prepared log. Schema, users, items and events are copied from it.
        golden: requests with offline scores, see ``offline.build_golden_request`` and ``build_golden_retrieval``.
        replay: the online path, ``longrec.serve.service.replay`` or
            ``longrec.serve.online_source.replay`` (``export`` may not import ``serve``).
        fitted: schema of the trained model. It may differ from the schema of the log in widths, pooling and history
            lengths. Default: the schema of the log.
        name: name of the model in URLs. Default: the name of its file.
        source: origin for the manifest: run, revision, date.
        overwrite: replace an existing bundle.
        external_stores: stores of the schema's token histories and ``embedding`` features, copied into the bundle.
        encoder: description of an encoder. None for another kind.
        catalog: raw columns of the items, and settings of the index of a vector retriever.
        states: write the programs of states of users, see ``exporting/states.py``.
        explorer: write the program of this explorer of the model too.

    Raises:
        BundleError: if the folder exists, the schema is not the model's, the model cannot be traced or has no states
            that can be folded, or scores differ.
    """
    model, log, out = model.served(), Path(log), Path(out)
    if out.exists() and not (overwrite and (out / bundle.MANIFEST).is_file()):
        do = "choose another name"
        if (out / bundle.MANIFEST).is_file():
            do += ", or replace the bundle: overwrite=True, and --overwrite on the command line"
        raise BundleError(str(out), "it already exists", "a new folder", do)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        build = Path(scratch) / "bundle"
        own = fitted or FittedSchema.load(log / bundle.SCHEMA)
        model_name = name or name_of(model)
        with Progress(5, f"export {model_name}", "steps") as progress:
            writer = _BundleWriter(
                build,
                model,
                own,
                log,
                external_stores or ExternalStores(),
                model_name,
                source or {},
                encoder,
                catalog or CatalogOptions(),
                states,
                explorer,
            )
            manifest = writer.write_files(golden, replay, progress)
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        build.rename(out)
    return manifest


@dataclass(frozen=True)
class _BundleWriter:
    """Writer of one bundle."""

    build: Path
    model: Model
    fitted: FittedSchema
    log: Path
    external_stores: ExternalStores
    name: str
    source: Mapping[str, Any]
    encoder: EncoderFacts | None
    catalog: CatalogOptions
    states: bool = False
    explorer: Explorer | None = None

    def write_files(self, golden: Sequence[GoldenRequest], replay: ReplayFunction, progress: Progress) -> Manifest:
        """Write every file and check the scores of the bundle."""
        build, model, fitted = self.build, self.model, self.fitted
        _check_schema(fitted, model)
        if isinstance(model, Retriever):
            check_catalog(fitted)
        _check_kind(model, self.encoder)
        tokens, knowledge = self._select_stores()
        build.mkdir()
        fitted.save(build / bundle.SCHEMA)
        for table in (bundle.USERS, bundle.ITEMS):
            if table == bundle.USERS and fitted.schema.user is None:
                EntityTable(Keys(pa.array([], pa.int64())), {}).save(build / table)  # no request names a row of the log
            else:
                shutil.copytree(self.log / table, build / table)
        events = self._write_history()
        users, items = EntityTable.load(build / bundle.USERS), EntityTable.load(build / bundle.ITEMS)
        if self.catalog.columns is not None:
            write_item_columns(build, self.catalog.columns, items.keys)
        if self.states:
            check_states(model, fitted, items)
        progress.advance(note="tables copied, tracing")
        programs, shapes, index = self._write_programs(items, progress)
        progress.advance(note="scores match, copying external stores, writing checksums")
        read = [entry for program in programs.values() for entry in program.inputs]
        groups, names = {entry.group for entry in read}, {entry.name for entry in read}
        locations = {
            "tokens": copy_stores(
                {n: s for n, s in tokens.items() if f"h.{n}" in groups}, build, bundle.TOKENS, copy_tokens
            ),
            "knowledge": copy_stores(
                {n: s for n, s in knowledge.items() if f"f.{n}" in names}, build, bundle.KNOWLEDGE, copy_knowledge
            ),
        }
        (build / bundle.GOLDEN).write_bytes(msgspec.json.encode(list(golden)))
        counts = {
            "users": len(users) - 1,
            "items": len(items) - 1,
            "events": events,
            "features": len(fitted.fields().features),
            "histories": len({entry.group for entry in read if entry.group.startswith("h.")}),
        }
        parity: dict[str, Any] = {"tolerance": TOLERANCE, "shapes": shapes, "golden": {"requests": len(golden)}}
        manifest = self._build_manifest(programs, counts, parity, locations, index)
        bundle.write_manifest(build, manifest)
        progress.advance(note="replaying golden requests")
        # The online path opens complete bundles only. Its parity figure goes into a second, final manifest.
        scale = None if self.encoder is None else self.encoder.scale
        parity["golden"]["worst"] = check_golden(build, golden, replay, scale)
        manifest = msgspec.structs.replace(manifest, parity=parity)
        bundle.write_manifest(build, manifest)
        progress.advance(note="online and offline scores match")
        return manifest

    def _write_history(self) -> int:
        """Write the events that histories read, and return their number. A retriever leaves out items of any event."""
        fitted, model = self.fitted, self.model
        own = any(history.source is None for history in fitted.schema.histories.values())
        if fitted.schema.prejoined or not (isinstance(model, Retriever) or (own and model.reads_history)):
            return 0
        history = _select_history(fitted, Segment.open(self.log / "events"), own and model.reads_history)
        history.write(self.build / bundle.HISTORY)
        return len(history)

    def _write_programs(
        self, items: EntityTable, progress: Progress
    ) -> tuple[dict[str, ProgramFacts], dict[str, float], IndexFacts | None]:
        """Trace and check all programs, and write the index of the items.

        Returns:
            The descriptions of the programs, the largest difference at every shape, and the description of the index.
        """
        inputs = list_inputs(self.fitted.fields(), histories=self.model.reads_history)
        modules = build_programs(self.model, inputs, self.states, self.explorer)
        files = write_programs({name: trace_module(module) for name, module in modules.items()}, self.build)
        progress.advance(note="traced, comparing with the model")
        facts, shapes, index = dict[str, ProgramFacts](), dict[str, float](), None
        for name, module in modules.items():
            program = Program(self.build / files[name])
            read = [entry for entry in module.inputs if entry.name in program.names]
            facts[name] = ProgramFacts(files[name], read, program.describe_outputs())
            prefix = f"{name} " if len(modules) > 1 else ""
            shapes |= {f"{prefix}{shape}": worst for shape, worst in check_shapes(module, program).items()}
            if name == ITEMS_PROGRAM:
                own = self.catalog
                index = write_index(program, self.fitted, items, self.build, own.index, own.queries)
        return facts, shapes, index

    def _select_stores(self) -> tuple[dict[str, TokenStore], dict[str, KnowledgeStore]]:
        """Return the stores that the model may read, by history and by feature."""
        schema = self.fitted.schema
        tokens = [n for n, history in schema.histories.items() if history.source is not None]
        knowledge = [n for n, feature in schema.features.items() if feature.kind == "embedding"]
        missing = [n for n in tokens if n not in self.external_stores.tokens] if self.model.reads_history else []
        missing += [n for n in knowledge if n not in self.external_stores.knowledge]
        if missing:
            raise BundleError(
                f"schema: {missing[0]!r}", "no store to copy", "the store that it reads", "pass it in external_stores"
            )
        read = tokens if self.model.reads_history else []
        return {n: self.external_stores.tokens[n] for n in read}, {
            n: self.external_stores.knowledge[n] for n in knowledge
        }

    def _build_manifest(
        self,
        programs: dict[str, ProgramFacts],
        counts: dict[str, int],
        parity: dict[str, Any],
        locations: dict[str, dict[str, str]],
        index: IndexFacts | None,
    ) -> Manifest:
        return Manifest(
            format=bundle.FORMAT,
            version=version("longrec"),
            model=self.name,
            kind=_get_kind(self.model),
            programs=programs,
            counts=counts,
            files=bundle.collect_file_facts(self.build),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            source=dict(self.source),
            parity=parity,
            encoder=self.encoder,
            index=index,
            generator=describe_generator(self.model) if isinstance(self.model, Generator) else None,
            states=self._describe_states(),
            explorer=None if self.explorer is None else describe_explorer(self.explorer),
            events_per_candidate=not self.states
            and (not isinstance(self.model, Ranker) or self.model.events_per_candidate),
            **locations,
        )

    def _describe_states(self) -> dict[str, bundle.StateFacts]:
        if not self.states:
            return {}
        assert isinstance(self.model, StatefulRanker)
        return describe_states(self.model, self.fitted)


def _get_kind(model: Model) -> str:
    if isinstance(model, Encoder):
        return bundle.ENCODER
    if isinstance(model, Reranker):
        return bundle.RERANKER
    return bundle.RETRIEVER if isinstance(model, Retriever) else bundle.RANKER


def _check_kind(model: Model, encoder: EncoderFacts | None) -> None:
    if isinstance(model, Encoder) != (encoder is not None):
        problem = "an encoder without its version and scale" if encoder is None else "a ranker as an encoder"
        raise BundleError("model", problem, "encoder facts for an encoder, none for a ranker")
    if isinstance(model, Encoder) and model.encodes_in_context:
        raise BundleError(
            "model",
            "an encoder whose vectors depend on other rows of the batch",
            "vectors of one impression alone",
            "train it with stored: before",
        )


def _check_schema(fitted: FittedSchema, model: Model) -> None:
    schema = fitted.schema
    if fitted.fields() != model.fields:
        raise BundleError(
            "schema",
            "its fields are not those of the model",
            "the schema the model was trained with",
            "pass the fitted schema of the run",
        )
    # One request has one context: a feature of the item in the event table cannot differ between candidates.
    plain = [name for name in fitted.list_features("context") if not schema.features[name].composed]
    wrong = [name for name in plain if schema.column(name) == schema.item]
    if wrong:
        raise BundleError(
            f"schema: feature {wrong[0]!r}",
            "it reads the item with side: context",
            "side: item",
            "set side: item and train again",
        )


def _select_history(fitted: FittedSchema, events: Segment, histories: bool = True) -> Segment:
    """Return the events with only the columns that histories read, or with their items alone. Candidates are none."""
    schema = fitted.schema
    events = _drop_candidates(events)
    values = list_event_columns(fitted) if histories else []
    filtered = [name for name, history in schema.histories.items() if history.where and histories]
    wanted = [
        "item",
        *values,
        *(f"known.{name}" for name in values if schema.features[name].available_at is not None),
        *(f"where.{name}" for name in filtered),
    ]
    wanted += [AVAILABLE] if AVAILABLE in events.columns else []
    columns = {name: np.asarray(events.columns[name]) for name in wanted}
    return Segment(events.offsets, events.times, columns)


def _drop_candidates(events: Segment) -> Segment:
    """Return the rows that are events, with their columns."""
    available = events.columns.get(AVAILABLE)
    if available is None or not (np.asarray(available) == NEVER).any():
        return events
    kept = np.asarray(available) != NEVER
    offsets = np.concatenate([[0], np.cumsum(kept)])[np.asarray(events.offsets)]
    columns = {name: np.asarray(column)[kept] for name, column in events.columns.items()}
    if (columns[AVAILABLE] == np.asarray(events.times)[kept]).all():
        del columns[AVAILABLE]
    return Segment(offsets, np.asarray(events.times)[kept], columns)
