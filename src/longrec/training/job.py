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

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from longrec.config import Strict, apply_overrides, parse, to_yaml
from longrec.data.settings import DataConfig, Source, Split, find_schema_faults
from longrec.errors import ConfigError, nearest
from longrec.features.schema import Schema
from longrec.models.core.settings_schema import ModelFacts, find_facts, read_facts
from longrec.training.job_checks import SOURCES, SchemaFile, find_excess, find_missing_files
from longrec.training.job_schema import read_schema, resolve_path
from longrec.training.job_upgrade import is_of_run, upgrade_job
from longrec.training.objective_settings import ClickSettings, ListSettings, NextItemSettings, ObjectiveSettings
from longrec.training.settings import EvaluateConfig, FitConfig
from longrec.yaml_reader import read_yaml

if TYPE_CHECKING:
    from longrec.models.core.base import Model

SECTIONS = ("name", "data", "model", "fit", "evaluate")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
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
        explicit_class: class of the model, if it cannot be imported by its name.
    """

    name: str | None
    data: DataConfig
    schema: Schema
    model: Mapping[str, Any]
    fit: FitConfig
    evaluate: EvaluateConfig
    explicit_class: type[Model] | None = field(default=None, compare=False)

    @cached_property
    def model_class(self) -> type[Model]:
        """Class of the model."""
        if self.explicit_class is not None:
            return self.explicit_class
        from longrec.models.core.finder import find

        return find(str(self.model["name"]))

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


def read_job(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    model_class: type[Model] | None = None,
    own_monitors: Collection[str] = (),
) -> Job:
    """Read a job from a YAML file, or from a mapping of the same form.

    Args:
        overrides: settings such as ``fit.lr=3e-3``. They also apply to the schema, wherever it is written:
            ``data.schema.histories.clicks.max_length=100``.
        model_class: class of the model, if it cannot be imported by its name.
        own_monitors: names of metrics of one's own, which ``fit.monitor`` may name.

    Raises:
        ConfigError: all faults of all sections, one line per fault.
    """
    return _read(source, overrides, sources=False, model_class=model_class, own_monitors=own_monitors)


def read_data(source: Mapping[str, Any], where: str) -> tuple[DataConfig, Schema]:
    """Read the data section of a job alone. Paths are relative to the working directory.

    Args:
        source: the keys of ``data``, with ``schema``.
        where: name of the section in messages.

    Raises:
        ConfigError: all faults of the section, and files that do not exist.
    """
    faults: list[str] = []
    content: dict[str, Any] = {"data": dict(source)}
    schema_file = _inline_schema(content, Path.cwd(), faults)
    data, schema = _read_data(content, where, Path.cwd(), schema_file, faults)
    if data is not None and schema is not None:
        faults += [f"data.{fault}" for fault in find_schema_faults(data, schema)]
    faults += find_missing_files(data, schema)
    if faults or data is None or schema is None:
        raise ConfigError(where, [fault.removeprefix("data.") for fault in faults])
    return data, schema


def build_job(
    data: DataConfig,
    schema: Schema,
    model: Mapping[str, Any],
    fit: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    *,
    name: str | None,
    where: str,
    model_class: type[Model] | None = None,
    own_monitors: Collection[str] = (),
    faults: Sequence[str] = (),
) -> Job:
    """Return the job of a checked data section, a schema, and further sections as plain values.

    Args:
        faults: faults of the caller, to be reported with the others.

    Raises:
        ConfigError: all faults of all sections, one line per fault.
    """
    content = {"model": model, "fit": fit, "evaluate": evaluate, **({} if name is None else {"name": name})}
    all_faults = [*faults, *_find_name_faults(content)]
    return _complete_job(content, where, data, schema, all_faults, model_class, own_monitors)


def check(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Read a job and verify that its files exist and have its columns. Only headers are read.

    Raises:
        ConfigError: as :func:`read_job`, with missing files and columns, and a model that exceeds the memory.
    """
    return _read(source, overrides, sources=True)


def _read(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    *,
    sources: bool,
    model_class: type[Model] | None = None,
    own_monitors: Collection[str] = (),
) -> Job:
    where, base, content = "config", Path.cwd(), source
    if not isinstance(content, Mapping):
        path = Path(content)
        where, base, content = str(content), path.absolute().parent, read_yaml(path)
        if is_of_run(path):
            content = upgrade_job(content)
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
    faults += _find_name_faults(content)
    data, schema = _read_data(content, where, base, schema_file, faults)
    if data is not None and schema is not None:
        faults += [f"data.{fault}" for fault in find_schema_faults(data, schema)]
    checked_file = schema_file if sources else None
    try:
        return _complete_job(content, where, data, schema, faults, model_class, own_monitors, checked_file)
    except ConfigError as error:
        name = next((one for one in overrides if one.startswith("model.name=")), None)
        raise ConfigError(where, [_explain_kept_setting(fault, name) for fault in error.faults]) from None


def _explain_kept_setting(fault: str, name: str | None) -> str:
    """Return a fault, and for an unknown setting of a model whose name was overridden, that the setting was kept."""
    if name is None or not re.match(r"model\.\w+: unknown key", fault):
        return fault
    whole = name.replace(".name", "")
    return f"{fault.partition('; ')[0]}; {name} keeps the other settings of model, {whole} drops them"


def _find_name_faults(content: Mapping[str, Any]) -> list[str]:
    name = content.get("name")
    if name is None or (isinstance(name, str) and NAME.fullmatch(name)):
        return []
    return [f"name: must be a folder name of letters, digits, '.', '-' and '_', got {name!r}"]


def _complete_job(
    content: Mapping[str, Any],
    where: str,
    data: DataConfig | None,
    schema: Schema | None,
    faults: list[str],
    model_class: type[Model] | None,
    own_monitors: Collection[str],
    schema_file: SchemaFile | None = None,
) -> Job:
    """Read the sections besides ``data`` and return the job, or raise one error for all faults.

    Args:
        schema_file: location of the schema, if the files of the job are to be checked too.
    """
    model, facts = _read_model(content, where, schema, faults, model_class)
    fit = _parse(FitConfig, content.get("fit"), where, "fit", faults)
    evaluate = _parse(EvaluateConfig, content.get("evaluate"), where, "evaluate", faults)
    if model is not None and facts is not None and fit is not None and evaluate is not None:
        fit = _complete_fit(model["name"], facts, fit, evaluate, own_monitors, faults)
    if schema_file is not None:
        faults += find_missing_files(data, schema)
        faults += find_excess(data, schema, model, model_class, fit, schema_file)
    if faults or data is None or schema is None or model is None or fit is None or evaluate is None:
        raise ConfigError(where, faults)
    named = [column for column in (fit.sample_weight, evaluate.sample_weight) if column is not None]
    if named:
        data = data.model_copy(update={"weights": tuple(dict.fromkeys([*data.weights, *named]))})
    start = None if fit.init_from is None else str(Path.cwd() / fit.init_from)
    fit = fit.model_copy(update={"runs": str(Path.cwd() / fit.runs), "init_from": start})
    return Job(content.get("name"), data, schema, model, fit, evaluate, model_class)


def _apply_overrides(content: Mapping[str, Any], overrides: Iterable[str], faults: list[str]) -> dict[str, Any]:
    """Apply each override separately, so that one invalid override hides no other fault."""
    result = apply_overrides(content, [])
    for override in overrides:
        try:
            result = apply_overrides(result, [override])
        except ConfigError as error:
            faults += [f"command line: {fault}" for fault in error.faults]
    return result


def _inline_schema(content: dict[str, Any], base: Path, faults: list[str]) -> SchemaFile:
    """Replace the path of a schema file by its contents."""
    data = content.get("data")
    if not isinstance(data, dict):
        return SchemaFile(None, base, broken=True)
    for key in [key for key in data if key not in DataConfig.model_fields and key != "schema"]:
        if "schema" not in data and nearest(str(key), [*DataConfig.model_fields, "schema"]) == "schema":
            faults.append(f"data.{key}: unknown key; did you mean 'schema'?")
            data["schema"] = data.pop(key)
    path = data.get("schema")
    if isinstance(path, Schema):
        data["schema"] = path.model_dump(mode="json", exclude_unset=True)
    if isinstance(path, Path):
        path = str(path)
    if not isinstance(path, str):
        return SchemaFile(None, base)
    file = Path(resolve_path(base, path))
    try:
        data["schema"] = read_yaml(file)
    except ConfigError as error:
        faults += [f"data.schema: {path}: {fault}" for fault in error.faults]
        data["schema"] = {}
        return SchemaFile(path, base, broken=True)
    return SchemaFile(path, file.parent)


def _read_data(
    content: Mapping[str, Any], where: str, base: Path, schema_file: SchemaFile, faults: list[str]
) -> tuple[DataConfig | None, Schema | None]:
    section = content.get("data")
    if section is None:
        faults.append("data: is required")
        return None, None
    own = {key: value for key, value in section.items() if key != "schema"} if isinstance(section, dict) else section
    data = _parse(DataConfig, own, where, "data", faults)
    if data is not None:
        update: dict[str, Any] = {"folder": str(Path.cwd() / data.folder)}
        for key in SOURCES:
            source: Source | None = getattr(data, key)
            if source is not None:
                update[key] = source.map_paths(lambda file: resolve_path(base, file))
        data = data.model_copy(update=update)
    if schema_file.broken:
        return data, None
    if section.get("schema") is None:
        faults.append("data.schema: is required: the path of a schema, or the schema itself")
        return data, None
    return data, read_schema(section["schema"], where, schema_file, faults)


def _read_model(
    content: Mapping[str, Any], where: str, schema: Schema | None, faults: list[str], model_class: type[Model] | None
) -> tuple[Mapping[str, Any] | None, ModelFacts | None]:
    """Return the section of the model with all defaults, and the facts that other sections depend on."""
    section = content.get("model")
    if isinstance(section, str):
        section = {"name": section}
    if section is None or (isinstance(section, dict) and section.get("name") is None):
        faults.append("model.name: is required" if section else "model: is required")
        return None, None
    if not isinstance(section, dict):
        faults.append(f"model: must be a mapping with a name, got {section!r}")
        return None, None
    try:
        facts = find_facts(str(section["name"])) if model_class is None else read_facts(model_class)
    except ConfigError as error:
        faults += [f"model.name: {fault}" for fault in error.faults]
        return None, None
    own = {key: value for key, value in section.items() if key != "name"}
    config = _parse(facts.config, own, where, "model", faults)
    if schema is not None and facts.reads_history and not facts.history_optional and not schema.histories:
        faults.append(f"model.name: {section['name']} reads histories, and the schema has none")
    if schema is not None and schema.user is None and facts.is_encoder:
        faults.append(f"model.name: {section['name']} writes tokens per user, and the schema has no user")
    return None if config is None else {"name": section["name"], **config.model_dump(mode="json")}, facts


def _complete_fit(
    name: str,
    facts: ModelFacts,
    fit: FitConfig,
    evaluate: EvaluateConfig,
    own_monitors: Collection[str],
    faults: list[str],
) -> FitConfig:
    """Return the settings of training with the defaults of the model's objective, and check those that it reads."""
    objective: ObjectiveSettings = NextItemSettings() if facts.is_retriever else ClickSettings()
    if facts.is_reranker:
        objective = ListSettings()
    faults += objective.find_faults(fit, evaluate)
    monitors = {**objective.monitors(evaluate), **dict.fromkeys(facts.monitors, "max")}
    if fit.monitor is not None and fit.monitor not in (*monitors, *own_monitors):
        near = nearest(fit.monitor, monitors)
        hint = f"did you mean {near!r}?" if near else f"{name} has {', '.join(monitors)}"
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
