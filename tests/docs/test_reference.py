"""The reference has every key of every settings class, every command and every error."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import reference_commands
import reference_errors
import reference_python
from doc_pages import ROOT
from pydantic import Field as Setting
from reference_settings import SECTIONS, Section, format_section, list_keys, mark_code
from reference_types import format_default, format_type

from longrec.config import Strict
from longrec.data.frames import FrameRecord
from longrec.data.settings import DataConfig, Split
from longrec.features.schema import Feature, Schema
from longrec.pipeline.config import PipelineConfig
from longrec.semantic_ids.methods import METHODS as TOKENIZERS
from longrec.semantic_ids.settings import TokenizeConfig
from longrec.training.compress_settings import CompressConfig, ExtractConfig
from longrec.training.settings import EvaluateConfig, FitConfig

REFERENCE = ROOT / "docs" / "reference"
METHODS = [cls.Settings for cls in TOKENIZERS.values()]
ROOTS = (
    Schema,
    DataConfig,
    FitConfig,
    EvaluateConfig,
    CompressConfig,
    ExtractConfig,
    PipelineConfig,
    TokenizeConfig,
    *METHODS,
)


RECORDS = {FrameRecord}
"""Classes that the config of a run holds, and no user writes."""


def list_classes(annotation: Any) -> Iterator[type[Strict]]:
    """Settings classes of an annotation, and those inside them."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
        for field in annotation.model_fields.values():
            yield from list_classes(field.annotation)
    for argument in typing.get_args(annotation):
        yield from list_classes(argument)


def read_headings(name: str) -> list[str]:
    text = (REFERENCE / name).read_text(encoding="utf-8")
    return re.findall(r"^##+ `?([^`\n]+)`?$", text, re.M)


def test_every_settings_class_of_a_config_has_a_section() -> None:
    classes = {cls for root in ROOTS for cls in list_classes(root)}
    assert classes - RECORDS == {section.cls for section in SECTIONS}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.heading)
def test_every_key_is_in_the_reference(section: Section) -> None:
    headings = {
        heading
        for name in ("schema.md", "config.md", "tokens.md", "tokenize.md", "pipeline.md")
        for heading in read_headings(name)
    }
    assert {f"{section.prefix}{key}" for key in list_keys(section)} <= headings


def test_every_command_and_error_is_in_the_reference() -> None:
    assert read_headings("commands.md") == list(reference_commands.list_commands())
    assert read_headings("errors.md") == list(reference_errors.list_errors())
    assert set(reference_errors.EXAMPLES) == set(reference_errors.list_errors())


def read_rows(name: str) -> dict[str, list[str]]:
    """Rows of a page's tables of results, by the model of the first cell."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\([^)]+\) \| (.+) \|$", text, re.M)
    return {model: cells.split(" | ") for model, cells in rows if re.search(r"\d\.\d", cells)}


def test_the_costs_of_models_are_those_of_the_list() -> None:
    listed, shown = read_rows("models.md"), read_rows("guide/choosing-a-model.md")
    assert len(shown) >= 5
    costs = {model: [cells[0], *cells[-2:]] for model, cells in listed.items()}
    assert {model: cells[1:] for model, cells in shown.items()} == {model: costs[model] for model in shown}


def test_a_settings_class_in_python_links_its_keys() -> None:
    text = "\n".join(reference_python._format_value("longrec.Split", Split))
    assert "[these keys](config.md#split)" in text
    assert "Rule that splits rows" in text


def test_a_docstring_becomes_markdown() -> None:
    text = reference_python.format_google(
        """Return ``x``.

        Args:
            name: of the thing, with
                a second line.

        Raises:
            ConfigError: if it is wrong.

        Settings:
            epochs: int = 2
                epochs over the rows

        >>> 1 + 1
        2
        """
    )
    assert text.startswith("Return `x`.\n\n**Arguments**\n\n- `name`: of the thing, with a second line.\n\n**Raises**")
    assert "- `epochs`: epochs over the rows\n" in text
    assert text.endswith("```pycon\n>>> 1 + 1\n2\n```")


class Example(Strict):
    """Settings of an example."""

    rate: float = Setting(1e-5, ge=0, lt=1, description="the rate")
    size: int | None = Setting(None, ge=2, description="the size; default: that of the model")
    names: tuple[str, ...] = Setting((), description="the names")
    inner: dict[str, Feature] = Setting({}, description="the inner ones")


@pytest.mark.parametrize(
    ("key", "type_text", "default"),
    [
        ("rate", "number, at least 0, below 1", "`1e-5`"),
        ("size", "whole number, at least 2", "that of the model"),
        ("names", "list of text", "`[]`"),
        ("inner", "mapping from a name to [Feature](#Feature)", "`{}`"),
    ],
)
def test_types_and_defaults_as_text(key: str, type_text: str, default: str) -> None:
    field = Example.model_fields[key]
    assert (format_type(field), format_default(field)) == (type_text, default)


def test_a_key_without_a_description_is_refused() -> None:
    class Silent(Strict):
        """Settings."""

        key: int = 3

    with pytest.raises(ValueError, match="without a description"):
        format_section(Section("Silent", "", Silent, ""))


def test_keys_and_values_of_a_description_are_code() -> None:
    field = FitConfig.model_fields["optimizer"]
    assert mark_code("sgd or adam; as fit.lr, {by: files}", field) == "`sgd` or `adam`; as `fit.lr`, `{by: files}`"
