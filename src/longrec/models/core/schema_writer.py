"""Writer of ``models/settings.json``: the settings of all models as JSON Schema, from their ``Config`` classes.

Run it after a change of a model's settings: ``make schemas``, or ``python -m longrec.models.core.schema_writer``.

Beside the keys of JSON Schema, the file has ``x-before`` and ``x-after`` (functions that validate a value),
``x-rules``, ``x-renamed-keys``, ``x-renamed-values``, ``x-rows`` (the setting counts rows of a table),
``x-row-numbers`` and ``x-row-width`` (it sizes what a row holds) and ``x-hash-width`` (it sizes a row of hashed pairs).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from longrec.config import Strict
from longrec.models.core.catalog import names
from longrec.models.core.finder import find
from longrec.models.core.settings_schema import AFTER, BEFORE, FACTS, RULES, SCHEMA_FILE, read_facts

_EXPANDED = ("settings", "properties", "$defs")
"""Keys whose content has one line per entry."""


class _Generator(GenerateJsonSchema):
    """Generator that writes down which functions validate a value."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a value with a function that is applied before its type is checked."""
        name = _find_name(schema["function"]["function"], BEFORE)
        return {**super().function_before_schema(schema), "x-before": name}

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        """Return the schema of a value with a function that is applied to it. Rules belong to their section."""
        function: Any = schema["function"]["function"]
        content = super().function_after_schema(schema)
        if getattr(function, "__name__", "") == Strict._check_rules.__name__:
            return content
        return {**content, "x-after": _find_name(function, AFTER)}

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        """Refuse a function that replaces a type."""
        raise _refuse(schema["function"]["function"])

    def function_wrap_schema(self, schema: core_schema.WrapValidatorFunctionSchema) -> JsonSchemaValue:
        """Refuse a function around a type."""
        raise _refuse(schema["function"]["function"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a section with its former names and its rules."""
        cls: Any = schema["cls"]
        content = {**super().model_schema(schema), "x-rules": [_find_name(rule, RULES) for rule in cls.rules]}
        content |= {"x-renamed-keys": dict(cls.renamed_keys), "x-renamed-values": dict(cls.renamed_values)}
        return {key: value for key, value in content.items() if value or not key.startswith("x-")}


def _find_name(function: Any, table: Mapping[str, Callable[..., Any]]) -> str:
    name = next((name for name, validator in table.items() if validator is function), None)
    if name is None:
        raise _refuse(function)
    return name


def _refuse(function: Any) -> TypeError:
    return TypeError(
        f"{function.__module__}.{function.__qualname__} validates a setting, and `longrec check` cannot call it "
        "without torch; write it in models/core/rules.py, and name it in models/core/settings_schema.py"
    )


def describe_models() -> dict[str, Any]:
    """Return the content of ``models/settings.json``.

    Raises:
        TypeError: if a class of settings has a validator that is not in ``settings_schema.py``.
    """
    content = {}
    for name in names():
        facts = read_facts(find(name))
        schema = facts.config.model_json_schema(schema_generator=_Generator)
        content[name] = {
            **{key: getattr(facts, key) for key in FACTS},
            **({"monitors": list(facts.monitors)} if facts.monitors else {}),
            "settings": _drop_titles(schema),
        }
    return content


def _drop_titles(schema: Any) -> Any:
    """Return a schema without the titles, which repeat the keys."""
    if isinstance(schema, list):
        return [_drop_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    content = {key: value for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    return {key: value if key == "default" else _drop_titles(value) for key, value in content.items()}


def format_schema() -> str:
    """Return the text of ``models/settings.json``, with one line per setting."""
    models = [f'"{name}": {_format_entries(content, 1)}' for name, content in describe_models().items()]
    return "{\n" + ",\n".join(models) + "\n}\n"


def _format_entries(content: Mapping[str, Any], depth: int, every: bool = False) -> str:
    """Return an object with one line per entry. Entries that hold settings, or all, are expanded in turn."""
    lines = []
    for key, value in content.items():
        expanded = every or key in _EXPANDED
        inner = key in ("properties", "$defs")
        if isinstance(value, dict) and (inner or (expanded and "properties" in value)):
            text = _format_entries(value, depth + 1, every=key == "$defs")
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f"{' ' * depth}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n" + " " * (depth - 1) + "}"


def main() -> None:
    """Write the file."""
    SCHEMA_FILE.write_text(format_schema(), encoding="utf-8")
    print(SCHEMA_FILE)


if __name__ == "__main__":
    main()
