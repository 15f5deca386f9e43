"""A job: one YAML file that says what to read, what to train and how, as frozen typed configs.

    name: my-run                                        # optional: what the run folder is called
    data: {log: events.parquet, schema: shop.schema.yaml, split: {by: time, valid_days: 1, test_days: 1}}
    model: {name: din, attention: [80, 40]}
    fit: {epochs: 2}
    evaluate: {resample: user}

A path is relative to the file that names it; what a job writes (``data.folder``, ``fit.runs``) goes below the
working directory. Every fault of every section is reported at once.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longrec.config import Strict, apply_overrides, parse, read_yaml, to_yaml, upgrade
from longrec.data.settings import DataConfig, Source, Split, as_of_faults
from longrec.errors import ConfigError, nearest
from longrec.features.schema import Schema
from longrec.train.settings import EvaluateConfig, FitConfig

SECTIONS = ("name", "data", "model", "fit", "evaluate")
CONFIG = "config.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SOURCES = ("log", "users", "items")
# Where one fault of a whole schema ends and the next begins.
_NEXT_FAULT = re.compile(r"; (?=(?:features|histories)[.:]|time: )")
StrictT = TypeVar("StrictT", bound=Strict)


@dataclass(frozen=True)
class Job:
    """What one training run is made from, checked, with every default filled in.

    Attributes:
        name: what the run is called; None lets ``train`` choose.
        data: sources and split, paths absolute.
        schema: what the columns mean.
        model: ``name`` and every setting of the model.
        fit: how it is trained.
        evaluate: how it is measured.
    """

    name: str | None
    data: DataConfig
    schema: Schema
    model: Mapping[str, Any]
    fit: FitConfig
    evaluate: EvaluateConfig

    def words(self) -> dict[str, Any]:
        """The resolved config as plain values; :func:`read_job` reads it back to an equal job."""
        # A split and a feature refuse keys of other kinds, so only what was given may be written.
        data = self.data.model_dump(mode="json", exclude_unset=True)
        data |= self.data.model_dump(mode="json", include={"folder", "memory", "threads"})
        data["split"] = _split_words(self.data.split)
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
        """:meth:`words` as YAML."""
        return to_yaml(self.words())


def read_job(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Read a job from a YAML file, or from a mapping of the same form.

    Args:
        overrides: ``fit.lr=3e-3`` and the like; they reach into the schema too, wherever it is written:
            ``data.schema.histories.clicks.max_length=100``.

    Raises:
        ConfigError: with one line a fault, all sections together.
    """
    return _read(source, overrides, sources=False)


def check(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """Read a job and make sure that the files it names are there and have its columns. Reads headers, and no row.

    Raises:
        ConfigError: as :func:`read_job`; missing files and columns, and a model beyond all memory, among the faults.
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
    whole = [word for word in overrides if word.partition("=")[0] in ("data", "data.schema")]
    content = _override(content, whole, faults)
    home = _inline_schema(content, base, faults)
    content = _override(content, [word for word in overrides if word not in whole], faults)

    for key in content:
        if key not in SECTIONS:
            near = nearest(str(key), SECTIONS)
            faults.append(
                f"{key}: unknown key; " + (f"did you mean {near!r}?" if near else f"known: {', '.join(SECTIONS)}")
            )
    name = content.get("name")
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        faults.append(f"name: must be a folder name of letters, digits, '.', '-' and '_', got {name!r}")
    data, schema = _data(content, where, base, home, faults)
    if data is not None and schema is not None:
        faults += [f"data.{fault}" for fault in as_of_faults(data, schema)]
    model = _model(content, where, schema, faults)
    fit = _parse(FitConfig, content.get("fit"), where, "fit", faults)
    evaluate = _parse(EvaluateConfig, content.get("evaluate"), where, "evaluate", faults)
    if sources:
        faults += _missing(data, schema)
        faults += _beyond(data, schema, model, fit, home)
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


def _override(content: Mapping[str, Any], words: Iterable[str], faults: list[str]) -> dict[str, Any]:
    """Lay each word over the content by itself, so that one bad word hides no other fault."""
    result = apply_overrides(content, [])
    for word in words:
        try:
            result = apply_overrides(result, [word])
        except ConfigError as error:
            faults += [f"command line: {fault}" for fault in error.faults]
    return result


@dataclass(frozen=True)
class _Home:
    """Where a schema is written: the file (None: inside the job), and the folder its own paths start from."""

    file: str | None
    folder: Path
    broken: bool = False


def _inline_schema(content: dict[str, Any], base: Path, faults: list[str]) -> _Home:
    """Put the contents of a schema file where its path stood."""
    data = content.get("data")
    if not isinstance(data, dict):
        return _Home(None, base, broken=True)
    for key in [key for key in data if key not in DataConfig.model_fields and key != "schema"]:
        if "schema" not in data and nearest(str(key), [*DataConfig.model_fields, "schema"]) == "schema":
            faults.append(f"data.{key}: unknown key; did you mean 'schema'?")
            data["schema"] = data.pop(key)
    path = data.get("schema")
    if not isinstance(path, str):
        return _Home(None, base)
    file = Path(_beside(base, path))
    try:
        data["schema"] = read_yaml(file)
    except ConfigError as error:
        faults += [f"data.schema: {path}: {fault}" for fault in error.faults]
        data["schema"] = {}
        return _Home(path, base, broken=True)
    return _Home(path, file.parent)


def _data(
    content: Mapping[str, Any], where: str, base: Path, home: _Home, faults: list[str]
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
                update[key] = source.placed(lambda file: _beside(base, file))
        data = data.model_copy(update=update)
    if home.broken:
        return data, None
    if section.get("schema") is None:
        faults.append("data.schema: is required: the path of a schema, or the schema itself")
        return data, None
    return data, _schema(section["schema"], where, home, faults)


def _schema(content: Any, where: str, home: _Home, faults: list[str]) -> Schema | None:
    try:
        schema = parse(Schema, content, where, prefix="data.schema")
    except ConfigError as error:
        for fault in error.faults:
            place, _, words = fault.partition(": ")
            # A fault of the schema as a whole carries its own places.
            lines = [f"{place}.{part}" for part in _NEXT_FAULT.split(words)] if place == "data.schema" else [fault]
            for line in lines:
                faults.append(line if home.file is None else f"{home.file}: {line.removeprefix('data.schema.')}")
        return None
    features = {}
    for name, feature in schema.features.items():
        if isinstance(feature.vocab, str):
            feature = feature.model_copy(update={"vocab": _beside(home.folder, feature.vocab)})
        features[name] = _placed(feature)
    histories = {name: _placed(history) for name, history in schema.histories.items()}
    return schema.model_copy(update={"features": features, "histories": histories})


def _placed(part: StrictT) -> StrictT:
    """A feature or history with the place of its store as seen from anywhere: what a job wrote lies below the working
    directory of whoever reads it.
    """
    source = getattr(part, "source", None)
    return part if source is None else part.model_copy(update={"source": _beside(Path.cwd(), source)})


def _model(
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
    from longrec.models.core import base as models  # brings torch, which nothing above needs

    try:
        kind = models.find(str(section["name"]))
    except ConfigError as error:
        faults += [f"model.name: {fault}" for fault in error.faults]
        return None
    own = {key: value for key, value in section.items() if key != "name"}
    config = _parse(kind.Config, own, where, "model", faults)
    if schema is not None and kind.reads_history and not kind.history_optional and not schema.histories:
        faults.append(f"model.name: {section['name']} reads histories, and the schema has none")
    return None if config is None else {"name": section["name"], **config.model_dump(mode="json")}


def _parse(cls: type[StrictT], content: Any, where: str, prefix: str, faults: list[str]) -> StrictT | None:
    """``parse`` that adds to the faults instead of raising; an empty section is a section of defaults."""
    try:
        return parse(cls, {} if content is None else content, where, prefix)
    except ConfigError as error:
        faults += error.faults
        return None


def _missing(data: DataConfig | None, schema: Schema | None) -> list[str]:
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
    for place, store in stores.items():
        if store is not None and "://" not in store and not Path(store).is_dir():
            writer = "longrec encode" if place.startswith("features.") else "longrec compress"
            faults.append(f"data.schema.{place}.from: no such store: {store}; {writer} writes one")
    return faults


def _beyond(
    data: DataConfig | None, schema: Schema | None, model: Mapping[str, Any] | None, fit: FitConfig | None, home: _Home
) -> list[str]:
    """What the files lack by their headers, and a model that cannot fit into the memory there is."""
    if data is None or schema is None:
        return []
    from longrec.data.source_checks import find_source_faults
    from longrec.train.memory import estimate_fields, estimate_memory, find_memory_fault

    every = [pattern for key in _SOURCES if (source := getattr(data, key)) for pattern in source.patterns()]
    faults = find_source_faults(data, schema) if all(glob.glob(pattern) for pattern in every) else []
    large = (
        None
        if model is None or fit is None
        else find_memory_fault(estimate_memory(model, estimate_fields(schema), fit))
    )
    if large is not None:
        faults.append(f"model: {large.where}: {large.found}; expected {large.expected}; {large.do}")
    return [_in_file(fault, home) for fault in faults]


def _in_file(fault: str, home: _Home) -> str:
    """A fault of the schema with the file that the schema stands in."""
    if home.file is None or not fault.startswith("data.schema."):
        return fault
    return f"{home.file}: {fault.removeprefix('data.schema.')}"


def _beside(folder: Path, path: str) -> str:
    """A path as seen from ``folder``; addresses such as s3://... stay."""
    return path if "://" in path else str(folder / Path(path).expanduser())


def flat(words: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys.

    >>> flat({"fit": {"lr": 0.1}, "name": "a"})
    {'fit.lr': 0.1, 'name': 'a'}
    """
    pairs: dict[str, Any] = {}
    for key, value in words.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def _split_words(split: Split) -> dict[str, Any]:
    """A split as its file says it, shares written out where shares are what it goes by."""
    words: dict[str, Any] = {"by": split.by, **split.model_dump(mode="json", exclude_unset=True)}
    if split.by == "user" or (split.by == "time" and set(words) <= {"by", "valid", "test"}):
        words |= {"valid": split.valid, "test": split.test}
    return words
