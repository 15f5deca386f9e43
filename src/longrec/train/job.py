"""Job: one YAML file with data, model, training and evaluation, as frozen typed configs.

    name: my-run                                        # optional: name of the run folder
    data: {log: events.parquet, schema: shop.schema.yaml, split: {by: time, valid_days: 1, test_days: 1}}
    model: {name: din, attention: [80, 40]}
    fit: {epochs: 2}
    evaluate: {resample: user}

A path is relative to the file that names it. The output of a job (``data.folder``, ``fit.runs``) goes below the
working directory. All faults of all sections are reported together.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longrec.config import Strict, apply_overrides, parse, read_yaml, to_yaml, upgrade
from longrec.data.settings import DataConfig, Source, Split, find_schema_faults
from longrec.errors import ConfigError, nearest
from longrec.features.schema import Schema
from longrec.models.core.settings_schema import find_facts
from longrec.train.memory_bound import estimate_fields, may_exceed_memory
from longrec.train.objective_settings import ClickSettings, NextItemSettings, ObjectiveSettings
from longrec.train.settings import EvaluateConfig, FitConfig

SECTIONS = ("name", "data", "model", "fit", "evaluate")
CONFIG = "config.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SOURCES = ("log", "users", "items")
# Separator between the faults of a whole schema.
_NEXT_FAULT = re.compile(r"; (?=(?:features|histories)[.:]|time: )")
StrictT = TypeVar("StrictT", bound=Strict)


@dataclass(frozen=True)
class Job:
    """Checked config of one training run, with all defaults filled in.

    Attributes:
        name: name of the run. None lets ``train`` choose.
        data: sources and split, with absolute paths.
        schema: meaning of the columns.
        model: ``name`` and all settings of the model.
        fit: settings of training.
        evaluate: settings of evaluation.
    """

    name: str | None
    data: DataConfig
    schema: Schema
    model: Mapping[str, Any]
    fit: FitConfig
    evaluate: EvaluateConfig

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved config as plain values, which :func:`read_job` reads back to an equal job."""
        # A split and a feature refuse keys of other kinds, so only the set keys may be written.
        data = self.data.model_dump(mode="json", exclude_unset=True)
        data |= self.data.model_dump(mode="json", include={"folder", "memory", "threads"})
        data["split"] = _dump_split(self.data.split)
        data = {key: data[key] for key in DataConfig.model_fields if key in data}
        data["schema"] = self.schema.model_dump(mode="json", exclude_unset=True)
        return {
            **({} if self.name is None else {"name": self.name}),
            "data": data,
            "model": dict(self.model),
            "fit": self.fit.model_dump(mode="json"),
            "evaluate": self.evaluate.model_dump(mode="json"),
        }

    def to_yaml(self) -> str:
        """Return :meth:`to_dict` as YAML."""
        return to_yaml(self.to_dict())


def read_job(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Read a job from a YAML file, or from a mapping of the same form.

    Args:
        overrides: settings such as ``fit.lr=3e-3``. They also apply to the schema, wherever it is written:
            ``data.schema.histories.clicks.max_length=100``.

    Raises:
        ConfigError: all faults of all sections, one line per fault.
    """
    return _read(source, overrides, sources=False)


def check(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Read a job and verify that its files exist and have its columns. Only headers are read.

    Raises:
        ConfigError: as :func:`read_job`, with missing files and columns, and a model that exceeds the memory.
    """
    return _read(source, overrides, sources=True)


def _read(source: str | Path | Mapping[str, Any], overrides: Sequence[str], *, sources: bool) -> Job:
    where, base, content = "config", Path.cwd(), source
    if not isinstance(content, Mapping):
        path = Path(content)
        where, base, content = str(content), path.absolute().parent, read_yaml(path)
        if _is_of_run(path):
            content = _upgrade(content)
    faults: list[str] = []
    whole = [override for override in overrides if override.partition("=")[0] in ("data", "data.schema")]
    content = _apply_overrides(content, whole, faults)
    schema_file = _inline_schema(content, base, faults)
    content = _apply_overrides(content, [override for override in overrides if override not in whole], faults)

    for key in content:
        if key not in SECTIONS:
            near = nearest(str(key), SECTIONS)
            faults.append(
                f"{key}: unknown key; " + (f"did you mean {near!r}?" if near else f"known: {', '.join(SECTIONS)}")
            )
    name = content.get("name")
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        faults.append(f"name: must be a folder name of letters, digits, '.', '-' and '_', got {name!r}")
    data, schema = _read_data(content, where, base, schema_file, faults)
    if data is not None and schema is not None:
        faults += [f"data.{fault}" for fault in find_schema_faults(data, schema)]
    model = _read_model(content, where, schema, faults)
    fit = _parse(FitConfig, content.get("fit"), where, "fit", faults)
    evaluate = _parse(EvaluateConfig, content.get("evaluate"), where, "evaluate", faults)
    if model is not None and fit is not None and evaluate is not None:
        fit = _complete_fit(model, fit, evaluate, faults)
    if sources:
        faults += _find_missing_files(data, schema)
        faults += _find_excess(data, schema, model, fit, schema_file)
    if faults or data is None or schema is None or model is None or fit is None or evaluate is None:
        raise ConfigError(where, faults)
    named = [column for column in (fit.sample_weight, evaluate.sample_weight) if column is not None]
    if named:
        data = data.model_copy(update={"weights": tuple(dict.fromkeys([*data.weights, *named]))})
    start = None if fit.init_from is None else str(Path.cwd() / fit.init_from)
    fit = fit.model_copy(update={"runs": str(Path.cwd() / fit.runs), "init_from": start})
    return Job(name, data, schema, model, fit, evaluate)


def _is_of_run(path: Path) -> bool:
    """Return True for the config that a run folder holds, which may have been written by an earlier version."""
    return path.name == CONFIG and all((path.parent / name).exists() for name in ("log.json", "environment.json"))


def _upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run folder under the present names of its keys and values."""
    from longrec.models.core.renames import upgrade_model_section

    classes: dict[str, type[Strict]] = {"data": DataConfig, "fit": FitConfig, "evaluate": EvaluateConfig}
    upgraded = {key: upgrade(classes[key], value) if key in classes else value for key, value in content.items()}
    data = upgraded.get("data")
    if isinstance(data, dict):
        data["schema"] = upgrade(Schema, data.get("schema"))
    return {**upgraded, "model": upgrade_model_section(upgraded.get("model"))}


def _apply_overrides(content: Mapping[str, Any], overrides: Iterable[str], faults: list[str]) -> dict[str, Any]:
    """Apply each override separately, so that one invalid override hides no other fault."""
    result = apply_overrides(content, [])
    for override in overrides:
        try:
            result = apply_overrides(result, [override])
        except ConfigError as error:
            faults += [f"command line: {fault}" for fault in error.faults]
    return result


@dataclass(frozen=True)
class _SchemaFile:
    """Location of a schema: its file (None inside the job), and the folder that its paths are relative to."""

    file: str | None
    folder: Path
    broken: bool = False


def _inline_schema(content: dict[str, Any], base: Path, faults: list[str]) -> _SchemaFile:
    """Replace the path of a schema file by its contents."""
    data = content.get("data")
    if not isinstance(data, dict):
        return _SchemaFile(None, base, broken=True)
    for key in [key for key in data if key not in DataConfig.model_fields and key != "schema"]:
        if "schema" not in data and nearest(str(key), [*DataConfig.model_fields, "schema"]) == "schema":
            faults.append(f"data.{key}: unknown key; did you mean 'schema'?")
            data["schema"] = data.pop(key)
    path = data.get("schema")
    if not isinstance(path, str):
        return _SchemaFile(None, base)
    file = Path(_resolve_path(base, path))
    try:
        data["schema"] = read_yaml(file)
    except ConfigError as error:
        faults += [f"data.schema: {path}: {fault}" for fault in error.faults]
        data["schema"] = {}
        return _SchemaFile(path, base, broken=True)
    return _SchemaFile(path, file.parent)


def _read_data(
    content: Mapping[str, Any], where: str, base: Path, schema_file: _SchemaFile, faults: list[str]
) -> tuple[DataConfig | None, Schema | None]:
    section = content.get("data")
    if section is None:
        faults.append("data: is required")
        return None, None
    own = {key: value for key, value in section.items() if key != "schema"} if isinstance(section, dict) else section
    data = _parse(DataConfig, own, where, "data", faults)
    if data is not None:
        update: dict[str, Any] = {"folder": str(Path.cwd() / data.folder)}
        for key in _SOURCES:
            source: Source | None = getattr(data, key)
            if source is not None:
                update[key] = source.map_paths(lambda file: _resolve_path(base, file))
        data = data.model_copy(update=update)
    if schema_file.broken:
        return data, None
    if section.get("schema") is None:
        faults.append("data.schema: is required: the path of a schema, or the schema itself")
        return data, None
    return data, _read_schema(section["schema"], where, schema_file, faults)


def _read_schema(content: Any, where: str, schema_file: _SchemaFile, faults: list[str]) -> Schema | None:
    try:
        schema = parse(Schema, content, where, prefix="data.schema")
    except ConfigError as error:
        for fault in error.faults:
            location, _, message = fault.partition(": ")
            # A fault of the schema as a whole carries its own locations.
            lines = (
                [f"{location}.{item}" for item in _NEXT_FAULT.split(message)] if location == "data.schema" else [fault]
            )
            for line in lines:
                faults.append(
                    line if schema_file.file is None else f"{schema_file.file}: {line.removeprefix('data.schema.')}"
                )
        return None
    features = {}
    for name, feature in schema.features.items():
        if isinstance(feature.vocab, str):
            feature = feature.model_copy(update={"vocab": _resolve_path(schema_file.folder, feature.vocab)})
        features[name] = _resolve_source(feature)
    histories = {name: _resolve_source(history) for name, history in schema.histories.items()}
    return schema.model_copy(update={"features": features, "histories": histories})


def _resolve_source(config: StrictT) -> StrictT:
    """Return a feature or history with the absolute path of its store, which is relative to the working directory."""
    source = getattr(config, "source", None)
    return config if source is None else config.model_copy(update={"source": _resolve_path(Path.cwd(), source)})


def _read_model(
    content: Mapping[str, Any], where: str, schema: Schema | None, faults: list[str]
) -> Mapping[str, Any] | None:
    section = content.get("model")
    if isinstance(section, str):
        section = {"name": section}
    if section is None or (isinstance(section, dict) and section.get("name") is None):
        faults.append("model.name: is required" if section else "model: is required")
        return None
    if not isinstance(section, dict):
        faults.append(f"model: must be a mapping with a name, got {section!r}")
        return None
    try:
        facts = find_facts(str(section["name"]))
    except ConfigError as error:
        faults += [f"model.name: {fault}" for fault in error.faults]
        return None
    own = {key: value for key, value in section.items() if key != "name"}
    config = _parse(facts.config, own, where, "model", faults)
    if schema is not None and facts.reads_history and not facts.history_optional and not schema.histories:
        faults.append(f"model.name: {section['name']} reads histories, and the schema has none")
    if schema is not None and schema.user is None and facts.is_encoder:
        faults.append(f"model.name: {section['name']} writes tokens per user, and the schema has no user")
    return None if config is None else {"name": section["name"], **config.model_dump(mode="json")}


def _complete_fit(model: Mapping[str, Any], fit: FitConfig, evaluate: EvaluateConfig, faults: list[str]) -> FitConfig:
    """Return the settings of training with the defaults of the model's objective, and check those that it reads."""
    is_retriever = find_facts(str(model["name"])).is_retriever
    objective: ObjectiveSettings = NextItemSettings() if is_retriever else ClickSettings()
    faults += objective.find_faults(fit, evaluate)
    monitors = objective.monitors(evaluate)
    if fit.monitor is not None and fit.monitor not in monitors:
        near = nearest(fit.monitor, monitors)
        hint = f"did you mean {near!r}?" if near else f"{model['name']} has {', '.join(monitors)}"
        faults.append(f"fit.monitor: {fit.monitor!r} is no metric of its validations; {hint}")
    own = {key: value for key, value in objective.fit_defaults.items() if key not in fit.model_fields_set}
    if fit.val_checks_per_epoch > 1 and "val_checks_per_epoch" in fit.model_fields_set:
        own.pop("check_val_every_n_epoch", None)
    if fit.monitor is None:
        own["monitor"] = next(iter(monitors))
    return fit.model_copy(update=own)


def _parse(cls: type[StrictT], content: Any, where: str, prefix: str, faults: list[str]) -> StrictT | None:
    """Parse a section and append its faults instead of raising. An empty section has all defaults."""
    try:
        return parse(cls, {} if content is None else content, where, prefix)
    except ConfigError as error:
        faults += error.faults
        return None


def _find_missing_files(data: DataConfig | None, schema: Schema | None) -> list[str]:
    faults = []
    for key in _SOURCES if data is not None else ():
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


def _find_excess(
    data: DataConfig | None,
    schema: Schema | None,
    model: Mapping[str, Any] | None,
    fit: FitConfig | None,
    schema_file: _SchemaFile,
) -> list[str]:
    """Return columns that are missing in the headers of files, and a model that exceeds the available memory."""
    if data is None or schema is None:
        return []
    from longrec.data.source_checks import find_source_faults

    every = [pattern for key in _SOURCES if (source := getattr(data, key)) for pattern in source.patterns()]
    faults = find_source_faults(data, schema) if all(glob.glob(pattern) for pattern in every) else []
    if model is not None and fit is not None and may_exceed_memory(model, schema, fit):
        from longrec.train.memory import estimate_memory, find_memory_fault  # imports torch, for the exact number

        fault = find_memory_fault(estimate_memory(model, estimate_fields(schema), fit))
        if fault is not None:
            faults.append(f"model: {fault.where}: {fault.found}; expected {fault.expected}; {fault.do}")
    return [_locate_in_file(fault, schema_file) for fault in faults]


def _locate_in_file(fault: str, schema_file: _SchemaFile) -> str:
    """Return a fault of the schema with the file of the schema."""
    if schema_file.file is None or not fault.startswith("data.schema."):
        return fault
    return f"{schema_file.file}: {fault.removeprefix('data.schema.')}"


def _resolve_path(folder: Path, path: str) -> str:
    """Return a path relative to ``folder``. Addresses such as s3://... are unchanged."""
    return path if "://" in path else str(folder / Path(path).expanduser())


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted keys.

    >>> flatten({"fit": {"lr": 0.1}, "name": "a"})
    {'fit.lr': 0.1, 'name': 'a'}
    """
    pairs: dict[str, Any] = {}
    for key, value in section.items():
        pairs |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def _dump_split(split: Split) -> dict[str, Any]:
    """Return the set keys of a split, with the shares written out if it uses shares."""
    values: dict[str, Any] = {"by": split.by, **split.model_dump(mode="json", exclude_unset=True)}
    if split.by == "user" or (split.by == "time" and set(values) <= {"by", "valid", "test"}):
        values |= {"valid": split.valid, "test": split.test}
    return values
