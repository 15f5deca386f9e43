"""Tests of the JSON schema of all models: up to date, and equal to the classes in all that it accepts and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, field_validator

from longrec.config import Strict, parse
from longrec.errors import ConfigError, UnknownName
from longrec.models.core import schema_writer, settings_schema
from longrec.models.core.catalog import names
from longrec.models.core.finder import find
from longrec.models.core.settings_schema import find_facts, read_facts

# Values of every type, of which each setting refuses most.
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 1.5, "relu", "7d", [], [0], [["a", "b"]], {}, {"a": 1}, {"name": "dinn"},
    {"name": "din", "mlp": [0]}, {"a": {"mlp": [3], "dropout": [0.1, 0.2], "of": ["b"]}},
)  # fmt: skip


def read(cls: type[Strict], content: Any) -> Any:
    """Return the settings as plain values, or their faults."""
    try:
        return parse(cls, content, "job.yaml", "model").model_dump(mode="json")
    except ConfigError as error:
        return error.faults


def test_the_file_is_up_to_date() -> None:
    written = settings_schema.SCHEMA_FILE.read_text(encoding="utf-8")
    assert written == schema_writer.format_schema(), "run: make schemas"


@pytest.mark.parametrize("model", names())
def test_the_schema_accepts_and_refuses_what_the_class_does(model: str) -> None:
    cls = find(model)
    real, built = read_facts(cls), find_facts(model)
    assert (built.reads_history, built.history_optional, built.is_retriever) == (
        real.reads_history, real.history_optional, real.is_retriever,
    )  # fmt: skip
    assert real.config is cls.Config
    assert built.config is not cls.Config
    keys = [*real.config.model_fields, *real.config.renamed_keys]
    contents: list[Any] = [{}, *cls.variants, {"embeding_dim": 3, "zzz": 1}, 3]
    contents += [{key: value} for number, key in enumerate(keys) for value in VALUES[number % 2 :: 2]]
    contents += [dict.fromkeys(keys, value) for value in VALUES]
    for content in contents:
        assert read(built.config, content) == read(real.config, content), content


def test_rules_of_several_settings_are_kept() -> None:
    assert read(find_facts("iat").config, {"heads": 3, "order": "temporal", "labels": True}) == [
        "model: heads: 3 heads do not divide a width of 64; labels: needs order: user"
    ]
    (fault,) = read(find_facts("can").config, {"base": {"name": "pnn", "kernel": "rank_one", "product": "outer"}})
    assert fault == "model.base: pnn: kernel: rank_one needs inner products, and product: outer has none" or (
        "kernel: rank_one needs inner products" in fault
    )
    (fault,) = read(find_facts("multi_tower").config, {"final": {"mlp": [8, 4], "dropout": [0.1, 0.2, 0.3]}})
    assert fault.startswith("model.final: dropout has 3 shares for 2 layers")


def test_a_model_that_the_file_does_not_have_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_schema, "build_facts", lambda name: None)
    assert find_facts("din").config is find("din").Config
    with pytest.raises(UnknownName, match="did you mean 'din'"):
        find_facts("dinn")


class Doubled(Strict):
    """Settings with a function that ``longrec check`` cannot call."""

    width: int = Field(8, description="Width.")

    @field_validator("width")
    @classmethod
    def _double(cls, value: int) -> int:
        return 2 * value


class Expanded(Strict):
    """Settings with a function of a test."""

    width: int = 8
    text: str = Field("a", json_schema_extra={})

    rules = (lambda config: [],)  # type: ignore[assignment]


@pytest.mark.parametrize("config", [Doubled, Expanded])
def test_a_validator_that_needs_the_class_is_refused(config: type[Strict]) -> None:
    with pytest.raises(TypeError, match=r"write it in models/core/rules\.py"):
        config.model_json_schema(schema_generator=schema_writer._Generator)


def test_the_file_is_json_schema() -> None:
    content = json.loads(Path(settings_schema.SCHEMA_FILE).read_text(encoding="utf-8"))
    assert sorted(content) == names()
    din = content["din"]["settings"]
    assert din["properties"]["attention"]["items"] == {"minimum": 1, "type": "integer"}
    assert din["additionalProperties"] is False
    assert {one for name in content for one in content[name]} == {
        "reads_history", "history_optional", "is_retriever", "is_encoder", "is_reranker", "monitors", "settings",
    }  # fmt: skip
