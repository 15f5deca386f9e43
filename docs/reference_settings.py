"""Reference pages of the settings of a config: one heading per key, with meaning, type and default."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.fields import FieldInfo
from reference_types import format_default, format_type, format_value, split_description

from longrec.config import Strict
from longrec.data.file_format import FileFormat, PackedCells
from longrec.data.settings import DataConfig, Source, Split, SplitFiles
from longrec.features.feature import list_kinds
from longrec.features.schema import Condition, Feature, History, Label, Schema, TimeColumn
from longrec.pipeline.config import (
    FilterConfig,
    LogConfig,
    MergeConfig,
    PipelineConfig,
    PrerankConfig,
    RankConfig,
    RecallSource,
    RerankConfig,
)
from longrec.pipeline.explore_config import Below, ExploreConfig
from longrec.pipeline.mix_config import Cap, MixConfig, Quota, Slot
from longrec.semantic_ids.drq import DRQSettings
from longrec.semantic_ids.rq_kmeans import RQKMeansSettings
from longrec.semantic_ids.rq_vae import RQVAESettings
from longrec.semantic_ids.settings import CapacityConfig, EventsConfig, TokenizeConfig, VectorsConfig
from longrec.signatures import get_text
from longrec.training.compress_settings import CompressConfig, ExtractConfig
from longrec.training.objective_settings import NextItemSettings
from longrec.training.schedules import Schedule
from longrec.training.settings import EvaluateConfig, FitConfig


@dataclass(frozen=True)
class Section:
    """Settings of one class on a reference page.

    Attributes:
        heading: heading of the section.
        prefix: path of its keys in a config. ``NAME`` stands for any name.
        cls: the settings class.
        guide: link to the page that explains it, below ``docs/reference``.
        links: further links by key.
        retriever: defaults of a retriever that differ.
    """

    heading: str
    prefix: str
    cls: type[Strict]
    guide: str
    links: Mapping[str, str] = field(default_factory=dict)
    retriever: Mapping[str, Any] = field(default_factory=dict)


SCHEMA = (
    Section(
        "Schema",
        "",
        Schema,
        "[Describe your log](../guide/schema.md)",
        {
            "time": "[Timestamps](../guide/timestamps.md)",
            "label_delay": "[When feedback becomes available](../guide/histories.md#when-feedback-becomes-available)",
        },
    ),
    Section(
        "TimeColumn",
        "time.",
        TimeColumn,
        "[Timestamps](../guide/timestamps.md)",
        {
            "available_at": "[Events that arrive late](../guide/histories.md#events-that-arrive-late)",
            "order": "[Order inside equal timestamps](../guide/timestamps.md#order-inside-equal-timestamps)",
        },
    ),
    Section("Label", "label.", Label, "[The label](../guide/schema.md#the-label)"),
    Section(
        "Feature",
        "features.NAME.",
        Feature,
        "[Features](../guide/features.md)",
        {
            "side": "[Sides](../guide/features.md#sides)",
            "source": "[Knowledge](../guide/instance-tokens.md#knowledge)",
            "feedback": "[When feedback becomes available](../guide/histories.md#when-feedback-becomes-available)",
        },
    ),
    Section(
        "History",
        "histories.NAME.",
        History,
        "[Histories](../guide/schema.md#histories)",
        {
            "source": "[Instance tokens](../guide/instance-tokens.md)",
            "columns": "[Pre-joined rows](../guide/joined-rows.md)",
        },
    ),
    Section("Condition", "histories.NAME.where.COLUMN.", Condition, "[Histories](../guide/schema.md#histories)"),
)
CONFIG = (
    Section(
        "data",
        "data.",
        DataConfig,
        "[Train a model](../guide/training.md#data)",
        {"weights": "[Sample weights](../guide/tuning.md#sample-weights)"},
    ),
    Section(
        "log",
        "data.log.",
        Source,
        "[Train a model](../guide/training.md#data)",
        {"as_of": "[Tables with versions](../guide/histories.md#tables-with-versions)"},
    ),
    Section("splits", "data.log.splits.", SplitFiles, "[Train a model](../guide/training.md#split)"),
    Section("rows", "data.log.rows.", FileFormat, "[Pre-joined rows](../guide/joined-rows.md#rows)"),
    Section("packed", "data.log.rows.packed.COLUMN.", PackedCells, "[Packed cells](../guide/joined-rows.md#packed)"),
    Section("split", "data.split.", Split, "[Train a model](../guide/training.md#split)"),
    Section(
        "fit",
        "fit.",
        FitConfig,
        "[Training options](../guide/tuning.md)",
        {
            "schedule": "[Schedules](../guide/tuning.md#schedules)",
            "negative_rate": "[Negative down-sampling](../guide/tuning.md#negative-down-sampling)",
            "sample_weight": "[Sample weights](../guide/tuning.md#sample-weights)",
            "device": "[Devices](../guide/tuning.md#devices)",
            "ties": "[Retrieval](../guide/retrieval.md#training)",
            "windows": "[Retrieval](../guide/retrieval.md#training)",
        },
        NextItemSettings.fit_defaults,
    ),
    Section("schedule", "fit.schedule.", Schedule, "[Schedules](../guide/tuning.md#schedules)"),
    Section(
        "evaluate",
        "evaluate.",
        EvaluateConfig,
        "[Evaluate and compare](../guide/evaluation.md)",
        {"seen": "[What a rank depends on](../guide/retrieval.md#what-a-rank-depends-on)"},
    ),
)
TOKENS = (
    Section("Compress", "", CompressConfig, "[Instance tokens](../guide/instance-tokens.md)"),
    Section("Encode", "", ExtractConfig, "[Knowledge](../guide/instance-tokens.md#knowledge)"),
)
_METHODS = "[Methods](../guide/semantic-ids.md#methods)"
TOKENIZE = (
    Section("Tokenize", "", TokenizeConfig, "[Semantic IDs](../guide/semantic-ids.md)"),
    Section("vectors", "vectors.", VectorsConfig, "[Vectors](../guide/semantic-ids.md#vectors)"),
    Section("capacity", "capacity.", CapacityConfig, "[Capacity](../guide/semantic-ids.md#capacity)"),
    Section("events", "events.", EventsConfig, "[Capacity](../guide/semantic-ids.md#capacity)"),
    Section("rq_kmeans", "rq_kmeans.", RQKMeansSettings, _METHODS),
    Section("rq_vae", "rq_vae.", RQVAESettings, _METHODS),
    Section("drq", "drq.", DRQSettings, _METHODS),
)
_RULES = "[Rules of a page](../guide/pipeline.md#rules-of-a-page)"
PIPELINE = (
    Section("Pipeline", "", PipelineConfig, "[Pipelines](../guide/pipeline.md)"),
    Section("recall", "recall.NAME.", RecallSource, "[Stages](../guide/pipeline.md#stages)"),
    Section("filter", "filter.", FilterConfig, "[Stages](../guide/pipeline.md#stages)"),
    Section("merge", "merge.", MergeConfig, "[Stages](../guide/pipeline.md#stages)"),
    Section("prerank", "prerank.", PrerankConfig, "[Stages](../guide/pipeline.md#stages)"),
    Section("rank", "rank.", RankConfig, "[Stages](../guide/pipeline.md#stages)"),
    Section("rerank", "rerank.", RerankConfig, "[Stages](../guide/pipeline.md#stages)"),
    Section("mix", "mix.", MixConfig, _RULES),
    Section("quotas", "mix.quotas.", Quota, _RULES),
    Section("slots", "mix.slots.", Slot, _RULES),
    Section("caps", "mix.caps.", Cap, _RULES),
    Section("explore", "explore.", ExploreConfig, "[Exploration](../guide/exploration.md)"),
    Section("below", "explore.below.", Below, "[Exploration](../guide/exploration.md#explore-a-page)"),
    Section("log", "log.", LogConfig, "[The log](../guide/pipeline.md#the-log-of-what-was-shown)"),
)
SECTIONS = (*SCHEMA, *CONFIG, *TOKENS, *TOKENIZE, *PIPELINE)


def list_keys(section: Section) -> dict[str, FieldInfo]:
    """Return the fields of a section by the key that a config writes."""
    return {one.alias or name: one for name, one in section.cls.model_fields.items()}


def format_section(section: Section) -> list[str]:
    """Return the lines of a section."""
    intro = [f"Keys of `{section.prefix.rstrip('.')}`." if section.prefix else "", f"Guide: {section.guide}."]
    lines = [f"## {section.heading}", "", format_docstring(get_text(section.cls)), "", " ".join(intro).strip(), ""]
    for (key, one), name in zip(list_keys(section).items(), section.cls.model_fields):
        lines += [f"### `{section.prefix}{key}`", "", f"{capitalize(format_meaning(one))}.{_link(section, name)}", ""]
        lines += [" · ".join(_list_facts(section, name, one)), ""]
    return lines


def _list_facts(section: Section, name: str, one: FieldInfo) -> Iterator[str]:
    yield f"**Type** {_link_classes(format_type(one), section)}"
    if one.is_required():
        yield "**Required**"
    else:
        text = format_default(one)
        text = f"`{text}`" if text in section.cls.model_fields else text
        yield f"**Default** {text if text.startswith('`') else mark_code(text, one)}{_of_retriever(section, name)}"
    if section.cls is Feature and (kinds := list_kinds(name)):
        yield "**Kinds** " + ", ".join(f"`{kind}`" for kind in kinds)


def _link_classes(text: str, own: Section) -> str:
    """Point the link of a settings class at its section, on the same page or another."""
    sections = {section.cls.__name__: section for section in SECTIONS}

    def link(match: re.Match[str]) -> str:
        section = sections[match[1]]
        page = "schema.md" if section in SCHEMA and own not in SCHEMA else ""
        return f"mapping (see [{section.heading}]({page}#{section.heading.lower()}))"

    return re.sub(r"\[(\w+)\]\(#\w+\)", link, text)


def format_meaning(one: FieldInfo) -> str:
    """Return the description of a key without its default, with its keys and values as code."""
    meaning, _ = split_description(one)
    if not meaning:
        raise ValueError(f"a setting without a description: {one}")
    return mark_code(meaning.rstrip("."), one)


def mark_code(text: str, one: FieldInfo) -> str:
    """Return the text of a description with its keys and values as code."""
    choices = sorted(set(_list_choices(one.annotation)) - ORDINARY, key=len, reverse=True)
    code = "|".join([*CODE, *(rf"(?<![\w'`-]){re.escape(choice)}(?![\w'`-])" for choice in choices)])
    pieces = re.split(r"(`[^`]+`)", text)
    return escape("".join(one if one.startswith("`") else re.sub(code, r"`\g<0>`", one) for one in pieces))


CODE = (
    r"\{[^}]*\}|\[[^\]]*\]",  # YAML
    r"(?:^|(?<=[.;] ))[a-z_]+(?=: )",  # the kind that a sentence is about, such as "time: share of the rows"
    r"\b(?:data|fit|evaluate|log)\.\w+|\b[a-z]+(?:_[a-z]+)+\b|\b\w+@\w\b|\btrue\b|\bfalse\b|\bnull\b",
    r"(?<=\. )action: \w+",
)
"""Patterns of keys and values inside a description."""
ORDINARY = frozenset({"user", "item", "time", "column", "files", "all", "train", "step"})
"""Values that are ordinary words too."""


def _list_choices(annotation: Any) -> list[str]:
    """Return the values of a setting with a fixed set of values."""
    inner = [one for argument in typing.get_args(annotation) for one in _list_choices(argument)]
    own = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return [*inner, *(str(one) for one in own)]


def _link(section: Section, name: str) -> str:
    return f" See {section.links[name]}." if name in section.links else ""


def _of_retriever(section: Section, name: str) -> str:
    return f", of a retriever {format_value(section.retriever[name])}" if name in section.retriever else ""


def format_page(title: str, intro: str, sections: Iterable[Section]) -> str:
    """Return a reference page of settings."""
    lines = [f"# {title}", "", "<!-- Written by `make docs`; do not edit. -->", "", intro, ""]
    for section in sections:
        lines += format_section(section)
    return "\n".join(lines).rstrip() + "\n"


def format_docstring(text: str) -> str:
    """Return the text of a docstring as Markdown. An example of Python is a block of code."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        is_example = paragraph.lstrip().startswith(">>> ")
        paragraphs.append(f"```pycon\n{paragraph}\n```" if is_example else to_markdown(paragraph))
    return "\n\n".join(paragraphs)


def to_markdown(text: str) -> str:
    """Return plain text of a docstring as Markdown: its code, and no accidental markup."""
    text = "\n".join(line.strip() for line in text.splitlines())
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)
    chunks = re.split(r"(``.+?``)", text, flags=re.S)
    return "".join(f"`{c[2:-2]}`" if c.startswith("``") else escape(c) for c in chunks)


def escape(text: str) -> str:
    """Return text in which ``<``, ``*`` and ``[`` are no markup."""
    pieces: Sequence[str] = re.split(r"(`[^`]+`)", text)
    return "".join(one if one.startswith("`") else re.sub(r"([<*\[\]|])", r"\\\1", one) for one in pieces)


def capitalize(text: str) -> str:
    """Return text with a capital first letter, unless it begins with a key or a value."""
    first = re.split(r"[\s,:;(]", text, maxsplit=1)[0]
    return text if re.search(r"[_\d.]|^`", first) else text[:1].upper() + text[1:]
