"""Tests of the overview and of the help pages: every command, key and model has one, in lines of 100 columns."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from longrec import help_pages
from longrec.cli import build_parser, main
from longrec.config import Strict
from longrec.data.file_format import FileFormat, PackedCells
from longrec.data.settings import DataConfig, Source, Split, SplitFiles
from longrec.errors import ConfigError
from longrec.features.feature import Feature, list_kinds
from longrec.features.schema import Condition, History, Label, Schema, TimeColumn
from longrec.models.core.catalog import names
from longrec.models.core.settings_schema import find_facts
from longrec.settings_text import describe_settings
from longrec.training.compress_settings import CompressConfig, ExtractConfig
from longrec.training.schedules import Schedule
from longrec.training.settings import EvaluateConfig, FitConfig

CLASSES: list[type[Strict]] = [
    DataConfig, Source, SplitFiles, Split, FileFormat, PackedCells, Schema, TimeColumn, Label, Feature, History,
    Condition, FitConfig, Schedule, EvaluateConfig, CompressConfig, ExtractConfig,
]  # fmt: skip


def list_parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


PARSERS = list_parsers()


def explain(topic: str) -> str:
    return help_pages.format_help(topic, PARSERS)


def test_longrec_alone_prints_an_overview_of_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 24
    assert "usage:" not in text
    assert [line.split("  ")[1] for line in text.splitlines()[3:6]] == [
        "longrec demo", "longrec check din.yaml", "longrec train din.yaml",
    ]  # fmt: skip
    assert all(command in text.split() for command in PARSERS)


def test_every_command_is_in_one_group() -> None:
    grouped = [command for group in help_pages.GROUPS.values() for command in group]
    assert sorted(grouped) == sorted(PARSERS)


def test_help_alone_lists_the_topics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    topics = capsys.readouterr().out.replace(",", " ").split()
    assert {*PARSERS, *help_pages.SECTIONS, *names()} <= set(topics)


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("fit.lr", ["fit.lr  number above 0; default 0.001", "fit.lr=VALUE"]),
        ("fit.epochs", ["default 2, of a retriever 100"]),
        ("features.kind", ["one of id, multi_id, numeric,", "data.schema.features.NAME.kind=VALUE"]),
        ("data.schema.features.price.kind", ["schema.features.kind  one of id"]),
        ("features.quantiles", ["bucketized, lookup: number of buckets"]),
        ("features.from", ["embedding: folder that `longrec encode` wrote"]),
        ("features", ["schema.features, a section of a config", "  min_count  whole number at least 1; default 1"]),
        ("data", ["  log  section (longrec help data.log); required"]),
        ("max_length", ["histories.max_length  whole number at least 1 and at most 1,000,000; default 50"]),
        ("column", ["data.split.column", "schema.time.column", "schema.features.column"]),
        ("schedule", ["fit.schedule, a section", "  power  number above 0; default 1"]),
        ("compress", ["usage: longrec compress", "settings of longrec compress, as key=value", "  codec  one of fp32"]),
        ("compress.mode", ["on the command line: mode=VALUE"]),
        ("train", ["usage: longrec train", "--resume RUN"]),
        ("model", ["longrec models lists the models"]),
        (
            "din",
            ["DIN: Deep Interest Network", "  attention  list of whole numbers, each at least 1; default [80, 40]"],
        ),
        ("din.attention", ["din.attention  list of whole numbers", "Hidden units of the activation unit."]),
        ("multi_tower.towers", ["multi_tower.towers  one section per name", "towers.pool  one of mean, sum, max"]),
        ("multi_tower.towers.pool", ["multi_tower.towers.pool  one of mean, sum, max; default mean"]),
        ("lr", ["Settings\n  none"]),
    ],
)
def test_a_topic_is_explained(topic: str, lines: list[str]) -> None:
    page = explain(topic)
    for line in lines:
        assert line in page


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("fit.ler", "did you mean 'fit.lr'?"),
        ("dinn", "did you mean 'din'?"),
        ("trian", "did you mean 'train'?"),
        ("maxlength", "did you mean 'schema.histories.max_length'?"),
        ("din.attentoin", "did you mean 'din.attention'?"),
        ("calendar", "keys that mention it: schema.features.kind"),
        ("NDCG", "keys that mention it: fit.monitor, evaluate.k"),
        ("xyzzy", "longrec help lists the topics"),
    ],
)
def test_a_near_miss_names_the_topic(topic: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        explain(topic)
    assert raised.value.faults == [f"no topic named {topic!r}; {hint}"]


def test_a_model_of_another_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_liking.py").write_text(
        '"""Liking: a model of a test."""\n'
        "raise RuntimeError\n"
        "class LikingConfig(Strict):\n    width: int = Field(8, ge=1, description='Width of it.')\n"
        "class Liking(Ranker):\n    Config = LikingConfig\n"
    )
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "__init__.py").write_text("")
    (tmp_path / "my_liking.py").rename(tmp_path / "team" / "liking.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "  width  int; default 8\n      Width of it." in explain("team.liking")
    assert explain("team.liking.width").startswith("team.liking.width  int; default 8")


@pytest.mark.parametrize(
    "topic", [*PARSERS, *help_pages.SECTIONS, "features", "histories", "data.log", "rows", *names()]
)
def test_pages_fit_the_terminal(topic: str) -> None:
    assert [line for line in explain(topic).splitlines() if len(line) > 100] == []


@pytest.mark.parametrize(
    "cls", [*CLASSES, *(find_facts(name).config for name in names())], ids=lambda cls: cls.__name__
)
def test_every_key_has_a_meaning(cls: type[Strict]) -> None:
    assert [one.key for one in describe_settings(cls) if not one.meaning] == []


def test_kinds_of_a_key_are_those_that_accept_it() -> None:
    values = {"hash": 9, "scale": "log", "quantiles": 4, "component": "weekday", "features": ["a", "b"], "map": "m"}
    assert list_kinds("pool") == ["multi_id"]
    assert list_kinds("dim") == []
    for key in values:
        assert list_kinds(key), key
