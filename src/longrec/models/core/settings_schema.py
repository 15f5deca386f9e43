"""Settings of the models that ship with LongRec, read from a JSON schema without importing a model or torch.

``models/settings.json`` is written from the ``Config`` classes by ``schema_writer.py``. A test compares the two. A
model of another package, or one that the file does not have, is imported.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, create_model
from pydantic import Field as Setting

from longrec.config import Strict, parse
from longrec.errors import ConfigError, UnknownName
from longrec.features.duration import validate_duration
from longrec.models.core import rules
from longrec.models.core.catalog import names
from longrec.models.core.finder import find

SCHEMA_FILE = Path(__file__).parents[1] / "settings.json"
_LIMITS = {
    "minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt",
    "minLength": "min_length", "minItems": "min_length", "maxItems": "max_length", "minProperties": "min_length",
}  # fmt: skip
"""Key of JSON Schema -> constraint of pydantic."""
FACTS = ("reads_history", "history_optional", "is_retriever", "is_encoder", "is_reranker")
"""Facts of a model in the file, beside its settings."""


@dataclass(frozen=True)
class ModelFacts:
    """What a config is checked against.

    Attributes:
        config: class of the settings.
        reads_history: True if the model reads the histories of the user.
        history_optional: True if the model also accepts a schema without histories.
        is_retriever: True for a model that ranks a catalog.
        is_encoder: True for a model that writes tokens per user.
        is_reranker: True for a model that orders lists again.
        monitors: metrics of its validations, besides those of its objective, that can select the best model.
    """

    config: type[Strict]
    reads_history: bool
    history_optional: bool
    is_retriever: bool
    is_encoder: bool
    is_reranker: bool = False
    monitors: tuple[str, ...] = ()


def find_facts(name: str) -> ModelFacts:
    """Return what a config of a model is checked against.

    Raises:
        UnknownName: if there is no such model.
        ConfigError: if the module of another package does not define exactly one concrete model.
    """
    if not re.search("[.:]", name) and name not in names():
        raise UnknownName("model", name, names())
    return build_facts(name) or read_facts(find(name))


@functools.cache
def build_facts(name: str) -> ModelFacts | None:
    """Return the facts of a model of ``models/settings.json``. None for any other model."""
    content = read_schema().get(name)
    if content is None:
        return None
    config = build_config(name, content["settings"])
    facts = {key: content[key] for key in FACTS if key in content}
    return ModelFacts(config, **facts, monitors=tuple(content.get("monitors", ())))


def read_facts(model: Any) -> ModelFacts:
    """Return the facts of an imported class of models."""
    from longrec.models.core.kinds import Encoder, Reranker, Retriever

    kinds = {
        "is_retriever": issubclass(model, Retriever),
        "is_encoder": issubclass(model, Encoder),
        "is_reranker": issubclass(model, Reranker),
    }
    return ModelFacts(model.Config, model.reads_history, model.history_optional, **kinds, monitors=model.monitors)


def read_schema() -> dict[str, Any]:
    """Return the content of ``models/settings.json``, by name of the model."""
    content: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return content


def validate_base_section(section: dict[str, Any]) -> dict[str, Any]:
    """Validate the section of a nested model, and return it with all defaults.

    Raises:
        ValueError: if the section has faults. All are listed.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("name: is required, the name of a ranker")
    try:
        config = parse(find_facts(name).config, settings, name)
    except ConfigError as error:
        raise ValueError("; ".join(error.faults)) from None
    return {"name": name, **config.model_dump(mode="json")}


BEFORE: Mapping[str, Callable[[Any], Any]] = {
    "duration": validate_duration,
    "number": rules.expand_number,
    "value": rules.expand_value,
    "switch": rules.expand_switch,
}
"""Functions that settings apply to a value before its type is checked, by their name in the schema."""
AFTER: Mapping[str, Callable[[Any], Any]] = {"model": validate_base_section}
"""Functions that settings apply to a value of the right type."""
_SIZES = ("x-rows", "x-row-numbers", "x-row-width", "x-hash-width")
"""Marks of settings that size tables."""
RULES: Mapping[str, Callable[[Any], list[str]]] = {
    "iat": rules.find_iat_faults,
    "reader": rules.find_reader_faults,
    "product": rules.find_product_faults,
    "sharing": rules.find_sharing_faults,
    "width": rules.find_width_faults,
    "dropout": rules.find_dropout_faults,
    "draw": rules.find_draw_faults,
    "path": rules.find_path_faults,
    "alignment": rules.find_alignment_faults,
}
"""Rules of whole sections."""


def build_config(name: str, schema: Mapping[str, Any]) -> type[Strict]:
    """Build a class of settings that accepts and refuses what the class of the schema does, with the same messages."""
    sections: dict[str, type[Strict]] = {}
    definitions = schema.get("$defs", {})

    def resolve(reference: str) -> type[Strict]:
        key = reference.rpartition("/")[2]
        if key not in sections:
            sections[key] = build_class(key, definitions[key])
        return sections[key]

    def build_class(title: str, content: Mapping[str, Any]) -> type[Strict]:
        fields: dict[str, Any] = {}
        for key, one in content.get("properties", {}).items():
            default = one.get("default", ...)
            sizes: Any = {mark: True for mark in _SIZES if one.get(mark)}
            setting = Setting(default, description=one.get("description"), json_schema_extra=sizes or None)
            fields[key] = (build_type(one, resolve), setting)
        cls: type[Strict] = create_model(title, __base__=Strict, **fields)
        cls.renamed_keys = content.get("x-renamed-keys", {})
        cls.renamed_values = content.get("x-renamed-values", {})
        cls.rules = tuple(RULES[rule] for rule in content.get("x-rules", ()))
        return cls

    return build_class(name, schema)


def build_type(schema: Mapping[str, Any], resolve: Callable[[str], type[Strict]]) -> Any:
    """Return the type of one setting."""
    base = _build_plain_type(schema, resolve)
    limits = {_LIMITS[key]: value for key, value in schema.items() if key in _LIMITS and "prefixItems" not in schema}
    if limits:
        base = Annotated[base, Setting(**limits)]
    if before := schema.get("x-before"):
        base = Annotated[base, BeforeValidator(BEFORE[before])]
    if after := schema.get("x-after"):
        base = Annotated[base, AfterValidator(AFTER[after])]
    return base


def _build_plain_type(schema: Mapping[str, Any], resolve: Callable[[str], type[Strict]]) -> Any:
    """Return a type without its constraints."""
    if "$ref" in schema:
        return resolve(schema["$ref"])
    if "anyOf" in schema:
        return Union[tuple(build_type(one, resolve) for one in schema["anyOf"])]  # noqa: UP007 - of a list
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return tuple[tuple(build_type(one, resolve) for one in schema["prefixItems"])]  # type: ignore[misc]
        case "array":
            return tuple[build_type(schema["items"], resolve), ...]  # type: ignore[misc]
        case "object":
            values = schema.get("additionalProperties")
            return dict[str, build_type(values, resolve) if isinstance(values, Mapping) else Any]  # type: ignore[misc]
        case kind:
            return {"integer": int, "number": float, "boolean": bool, "string": str, "null": None}[str(kind)]
