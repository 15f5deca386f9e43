"""Every default that a page or a description states is the default of the code.

Prose states a default as `` `fit.lr` (default `1e-3`) ``. A table of keys states it as ``Default `10` `` or as
`` `mask` (default) ``. Any other form with a value is refused, because nothing could check it.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_pages import GUIDE, ROOT, without_code
from reference_settings import SECTIONS, format_value

from longrec.config import Strict
from longrec.data.settings import DataConfig
from longrec.features.schema import Feature, History, Label, TimeColumn
from longrec.models.core.catalog import names
from longrec.models.core.registry import find
from longrec.serve.history_request import HistoryRequest
from longrec.serve.request_json import EventRequest, RankRequest, RecommendRequest
from longrec.training.objective_settings import NextItemSettings
from longrec.training.objectives import OBJECTIVES
from longrec.training.settings import EvaluateConfig, FitConfig

PAGES = sorted([ROOT / "README.md", ROOT / "docs" / "index.md", *GUIDE.glob("*.md")])
CONFIG: Mapping[str, type[Strict]] = {
    "data": DataConfig, "fit": FitConfig, "evaluate": EvaluateConfig,
    "time": TimeColumn, "label": Label, "features": Feature, "histories": History,
}  # fmt: skip
REQUESTS = {
    ("serving.md", "A request"): RankRequest,
    ("serving.md", "The history of a score"): HistoryRequest,
    ("serving.md", "Recommendations"): RecommendRequest,
    ("events.md", "Recording events"): EventRequest,
}
PROSE = re.compile(r"`(\w+(?:\.\w+)+)` \(default `([^`]+)`(?:, of a retriever `([^`]+)`)?\)")
ROW = re.compile(r"^\| `(\w+)` \| (.*) \|$", re.M)
IN_ROW = re.compile(r"Default `?([^`.|]+?)`?(?=[.:,|]|$)|`([^`]+)` \((?:the )?default\)")
OTHER = re.compile(
    r"\b[Dd]efault:?(?: is| of| to)? `?(?:-?\d|true\b|false\b|null\b|\[[^\]]*\](?!\()|\{)|`[^`]+` \((?:the )?default\)"
)
AS_NONE = {"now", "at", "none"}


def find_default(path: str) -> Any:
    """Default of a key of a config, such as ``data.split.valid``."""
    first, *rest = [name for name in path.split(".") if not name.isupper()]
    assert first in CONFIG, f"{path}: not a key of a config"
    cls: Any = CONFIG[first]
    for key in rest[:-1]:
        inner = [one for one in list_strict(cls.model_fields[key].annotation)]
        assert inner, f"{path}: {key} has no keys"
        cls = inner[0]
    assert rest[-1] in cls.model_fields, f"{path}: no such key"
    return cls.model_fields[rest[-1]].get_default(call_default_factory=True)


def list_strict(annotation: Any) -> Iterator[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from list_strict(argument)


def is_same(stated: str, default: Any) -> bool:
    """True if a stated default is the default of the code."""
    if default is None:
        return stated in AS_NONE
    return (
        stated == default
        or format_value(yaml.safe_load(stated)) == format_value(default)
        or _is_number(stated, default)
    )


def _is_number(stated: str, default: Any) -> bool:
    try:
        return not isinstance(default, bool) and float(stated) == float(default)
    except (TypeError, ValueError):
        return False


def find_faults(page: str, text: str) -> list[str]:
    """Wrong defaults of a page, and defaults that are stated in a form that cannot be checked."""
    text, faults = without_code(text), []
    for match in PROSE.finditer(text):
        path, stated, retriever = match.groups()
        if not is_same(stated, default := find_default(path)):
            faults.append(f"{path}: {stated} is stated, {default!r} is the default")
        if retriever and not is_same(retriever, default := NextItemSettings.fit_defaults[path.removeprefix("fit.")]):
            faults.append(f"{path} of a retriever: {retriever} is stated, {default!r} is the default")
    text = PROSE.sub("", text)
    for heading, section in split_sections(text):
        defaults = find_table_defaults(page, heading, section)
        if defaults is None:
            continue
        for row in ROW.finditer(section):
            for match in IN_ROW.finditer(row[2]):
                stated = match[1] or match[2]
                if not is_same(stated, default := defaults[row[1]]):
                    faults.append(f"{row[1]}: {stated} is stated, {default!r} is the default")
        text = text.replace(section, ROW.sub("", section))
    return [*faults, *(f"{match[0]!r}: in no form that a test can check" for match in OTHER.finditer(text))]


def split_sections(text: str) -> list[tuple[str, str]]:
    """Headings of a page with the text below each."""
    pieces = re.split(r"^##+ (.+)$", text, flags=re.M)
    return list(zip(pieces[1::2], pieces[2::2]))


def find_table_defaults(page: str, heading: str, section: str) -> dict[str, Any] | None:
    """Defaults of the keys of a table: of a request by its heading, of a config by its first cell."""
    if (page, heading) in REQUESTS:
        fields = REQUESTS[page, heading].__struct_fields__
        values = REQUESTS[page, heading].__struct_defaults__
        return dict.fromkeys(fields) | dict(zip(fields[len(fields) - len(values) :], values))
    if (match := re.search(r"^\| key of `(\w+)` \|", section, re.M)) is not None:
        fields = CONFIG[match[1]].model_fields
        return {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_stated_default_is_that_of_the_code(page: Path) -> None:
    assert find_faults(page.name, page.read_text(encoding="utf-8")) == []


def list_settings_classes() -> list[type[Strict]]:
    """Classes of config, schema and stores, and those of every model."""
    classes = {section.cls for section in SECTIONS} | {find(name).Config for name in names()}
    return sorted(classes, key=lambda cls: cls.__name__)


def find_description_faults(cls: type[Strict]) -> list[str]:
    """Descriptions that state another default than the one of their key."""
    faults = []
    for key, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if field.is_required() or default in (None, (), {}, ""):
            continue
        stated = re.search(
            r"\bdefaults?(?::| is)? `?([\w.+-]+)|`?([\w.+-]+)`? \((?:the )?default\)", field.description or ""
        )
        if stated is not None and not is_same(stated[1] or stated[2], default):
            faults.append(f"{cls.__name__}.{key}: {stated[0]!r}, and the default is {default!r}")
    return faults


def test_no_description_states_another_default() -> None:
    assert [fault for cls in list_settings_classes() for fault in find_description_faults(cls)] == []


def test_the_default_of_monitor_is_the_first_metric_of_each_objective() -> None:
    stated = (FitConfig.model_fields["monitor"].description or "").partition("; default: ")[2]
    first = {name: next(iter(one.settings.monitors(EvaluateConfig()))) for name, one in OBJECTIVES.items()}
    of_ranks = re.sub("[0-9]+", "K", first["next_item"])
    assert stated == f"{first['clicks']} of a ranker, {of_ranks} of a retriever or a re-ranker"
    assert first["lists"] == first["next_item"]


# ---- planted faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("`fit.lr` (default `2e-3`)", "fit.lr: 2e-3 is stated"),
        ("`fit.epochs` (default `2`, of a retriever `50`)", "of a retriever: 50 is stated"),
        ("`evaluate.k` (default `[5]`)", "evaluate.k"),
        ("The default is 512.", "in no form"),
        ("## A request\n\n| key | meaning |\n| --- | --- |\n| `allow_unknown` | Default `true` |\n", "allow_unknown"),
        (
            "## T\n\n| key of `evaluate` | |\n| --- | --- |\n| `seen` | `keep` (default): all |\n",
            "seen: keep is stated",
        ),
    ],
)
def test_a_wrong_default_is_reported(text: str, says: str) -> None:
    (fault,) = find_faults("serving.md", f"# T\n\n{text}\n")
    assert says in fault


def test_right_defaults_are_accepted() -> None:
    text = "`fit.lr` (default `1e-3`), `data.split.valid` (default `0.1`), `fit.betas` (default `[0.9, 0.999]`)"
    assert find_faults("training.md", f"# T\n\n{text}\n") == []
