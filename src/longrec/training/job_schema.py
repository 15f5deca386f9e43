"""The schema of a job, and the paths that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from longrec.config import Strict, parse, split_faults
from longrec.errors import ConfigError
from longrec.features.schema import Schema
from longrec.training.job_checks import SchemaFile

StrictT = TypeVar("StrictT", bound=Strict)


def read_schema(content: Any, where: str, schema_file: SchemaFile, faults: list[str]) -> Schema | None:
    """Return the schema of a job with absolute paths, and append its faults. None for a schema with faults."""
    try:
        schema = parse(Schema, content, where, prefix="data.schema")
    except ConfigError as error:
        for line in split_faults(Schema, error.faults, "data.schema"):
            faults.append(
                line if schema_file.file is None else f"{schema_file.file}: {line.removeprefix('data.schema.')}"
            )
        return None
    features = {}
    for name, feature in schema.features.items():
        if isinstance(feature.vocab, str):
            feature = feature.model_copy(update={"vocab": resolve_path(schema_file.folder, feature.vocab)})
        features[name] = _resolve_source(feature)
    histories = {name: _resolve_source(history) for name, history in schema.histories.items()}
    return schema.model_copy(update={"features": features, "histories": histories})


def _resolve_source(config: StrictT) -> StrictT:
    """Return a feature or history with the absolute path of its store, which is relative to the working directory."""
    source = getattr(config, "source", None)
    return config if source is None else config.model_copy(update={"source": resolve_path(Path.cwd(), source)})


def resolve_path(folder: Path, path: str) -> str:
    """Return a path relative to ``folder``. Addresses such as s3://... are unchanged."""
    return path if "://" in path else str(folder / Path(path).expanduser())
