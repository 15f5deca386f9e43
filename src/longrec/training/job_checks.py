"""Checks of a job against the machine: its files, the headers of their columns, and the memory of its model."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.data.settings import DataConfig, Source
from longrec.features.schema import Schema
from longrec.training.settings import FitConfig

if TYPE_CHECKING:
    from longrec.models.core.base import Model

SOURCES = ("log", "users", "items")
"""Keys of the inputs in the data section."""


@dataclass(frozen=True)
class SchemaFile:
    """Location of a schema: its file (None inside the job), and the folder that its paths are relative to."""

    file: str | None
    folder: Path
    broken: bool = False


def find_missing_files(data: DataConfig | None, schema: Schema | None) -> list[str]:
    """Return one message per file, vocabulary and store that does not exist."""
    faults = []
    for key in SOURCES if data is not None else ():
        source: Source | None = getattr(data, key)
        for pattern in source.patterns() if source is not None else ():
            if "://" not in pattern and not glob.glob(pattern):
                faults.append(f"data.{key}: no such file: {pattern}")
    for name, feature in schema.features.items() if schema is not None else ():
        if isinstance(feature.vocab, str) and not Path(feature.vocab).is_file():
            faults.append(f"data.schema.features.{name}.vocab: no such file: {feature.vocab}")
    stores = {f"features.{name}": f.source for name, f in schema.features.items()} if schema is not None else {}
    stores |= {f"histories.{name}": h.source for name, h in schema.histories.items()} if schema is not None else {}
    for location, store in stores.items():
        if store is not None and "://" not in store and not Path(store).is_dir():
            writer = "longrec encode" if location.startswith("features.") else "longrec compress"
            faults.append(f"data.schema.{location}.from: no such store: {store}; {writer} writes one")
    return faults


def find_excess(
    data: DataConfig | None,
    schema: Schema | None,
    model: Mapping[str, Any] | None,
    model_class: type[Model] | None,
    fit: FitConfig | None,
    schema_file: SchemaFile,
) -> list[str]:
    """Return columns that are missing in the headers of files, and a model that exceeds the available memory."""
    if data is None or schema is None:
        return []
    from longrec.data.source_checks import find_source_faults
    from longrec.training.memory import estimate_fields, estimate_memory, find_memory_fault

    every = [pattern for key in SOURCES if (source := getattr(data, key)) for pattern in source.patterns()]
    faults = find_source_faults(data, schema) if all(glob.glob(pattern) for pattern in every) else []
    memory_fault = (
        None
        if model is None or fit is None
        else find_memory_fault(estimate_memory(model, estimate_fields(schema), fit, model_class))
    )
    if memory_fault is not None:
        faults.append(
            f"model: {memory_fault.where}: {memory_fault.found}; expected {memory_fault.expected}; {memory_fault.do}"
        )
    return [_locate_in_file(fault, schema_file) for fault in faults]


def _locate_in_file(fault: str, schema_file: SchemaFile) -> str:
    """Return a fault of the schema with the file of the schema."""
    if schema_file.file is None or not fault.startswith("data.schema."):
        return fault
    return f"{schema_file.file}: {fault.removeprefix('data.schema.')}"
