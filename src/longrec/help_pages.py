"""Pages of ``longrec`` and ``longrec help``: an overview, commands, keys of a config, and models.

A topic is the name of a command, a section of a config, a key with its path (``fit.lr``), or a model.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longrec import __version__
from longrec.errors import ConfigError, nearest
from longrec.terminal_text import WIDTH, wrap_docstring

if TYPE_CHECKING:
    from longrec.config import Strict
    from longrec.settings_text import SettingText

GROUPS: Mapping[str, Sequence[str]] = {
    "data": ("check", "audit", "prepare", "import", "synthetic"),
    "models": ("train", "evaluate", "predict", "compare", "offpolicy", "report", "bench", "models", "cite"),
    "two stages": ("compress", "encode"),
    "semantic IDs": ("tokenize", "diagnose"),
    "serving": ("export", "serve", "trace", "candidates", "catalog", "events", "stream", "warm"),
    "learning": ("help", "demo"),
}
"""Commands by what they are for."""
_FIRST = {
    "longrec demo": "MovieLens-1M from log to server, in minutes",
    "longrec check din.yaml": "all errors of a config together",
    "longrec train din.yaml": "prepare the log, train, evaluate",
}
SECTIONS = ("data", "schema", "model", "fit", "evaluate", "compress", "encode", "pipeline")
"""Sections of a config, the settings of two commands, and pipelines."""


def format_overview() -> str:
    """Return what ``longrec`` alone prints."""
    lines = [
        f"LongRec {__version__}: recommendation from long user histories, from an event log to a served model.",
        "",
    ]
    width = max(map(len, _FIRST))
    lines += ["Begin with", *(f"  {command:<{width}}  {meaning}" for command, meaning in _FIRST.items())]
    lines += ["", "Commands", *(f"  {group:<12}  {'  '.join(commands)}" for group, commands in GROUPS.items()), ""]
    return "\n".join([*lines, "longrec help TOPIC explains a command, a key (fit.lr) or a model (din).", _MORE])


_MORE = "longrec COMMAND --help lists the options of a command."


def format_topics() -> str:
    """Return the list of topics that ``longrec help`` alone prints."""
    from longrec.models.core.catalog import names

    commands = [command for group in GROUPS.values() for command in group]
    lines = ["longrec help TOPIC, where a topic is one of", ""]
    for kind, topics in {"command": commands, "section": SECTIONS, "model": names()}.items():
        lines += textwrap.wrap(", ".join(topics), WIDTH, initial_indent=f"  {kind:<9}", subsequent_indent=" " * 11)
    lines += ["  key      with its path: fit.lr, features.kind, histories.max_length, din.attention"]
    return "\n".join([*lines, "", _MORE])


def format_help(topic: str, parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the pages of a topic.

    Args:
        parsers: parser of each command.

    Raises:
        ConfigError: if there is no such topic. The message has the nearest one, or keys whose text has the word.
    """
    pages = []
    if topic in parsers:
        parsers[topic].formatter_class = _PageFormatter
        pages.append(parsers[topic].format_help().rstrip())
    if topic == "model":
        pages.append(_MODEL)
    keys = _list_keys()
    pages += [_format_page(page) for page in _find_pages(topic, keys)]
    if not pages or "." not in topic:  # a dotted name is looked up among modules
        pages += _find_model_pages(topic)
    if not pages:
        raise ConfigError("help", [_describe_unknown(topic, [*parsers, *SECTIONS], keys)])
    return "\n\n".join(pages)


_MODEL = (
    "model\n  section of a config: name of a model, and its settings, as in {name: din, attention: [80, 40]}\n"
    "  longrec models lists the models, and longrec help din explains one."
)


class _PageFormatter(argparse.HelpFormatter):
    """Formatter for as many columns as tables have."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH)


@dataclass(frozen=True)
class _Page:
    """A section, or one key of a section.

    Attributes:
        path: path in a config, without the names of features and histories.
        written: path as an argument of the command line has it.
        cls: settings of the section, or of that which holds the key.
        key: None for a section.
        others: defaults of retrievers.
    """

    path: str
    written: str
    cls: type[Strict]
    key: SettingText | None
    others: Mapping[str, Any]


def _list_keys() -> list[_Page]:
    """Return the pages of all sections and keys, in the order of the sections. A repeated class is listed once."""
    from longrec.data.settings import DataConfig
    from longrec.features.schema import Schema
    from longrec.pipeline.config import PipelineConfig
    from longrec.training.compress_settings import CompressConfig, ExtractConfig
    from longrec.training.objective_settings import NextItemSettings
    from longrec.training.settings import EvaluateConfig, FitConfig

    roots: dict[str, type[Strict]] = {
        "data": DataConfig, "schema": Schema, "fit": FitConfig, "evaluate": EvaluateConfig, "compress": CompressConfig,
        "encode": ExtractConfig, "pipeline": PipelineConfig,
    }  # fmt: skip
    seen: set[type[Strict]] = set()
    others = {"fit": NextItemSettings.fit_defaults}
    return [
        page
        for path, cls in roots.items()
        for page in _walk(path, _WRITTEN.get(path, path), cls, others.get(path, {}), seen)
    ]


_WRITTEN = {"schema": "data.schema", "compress": "", "encode": "", "pipeline": ""}


def _walk(
    path: str, written: str, cls: type[Strict], others: Mapping[str, Any], seen: set[type[Strict]]
) -> Iterator[_Page]:
    """Yield the pages of a section, of its keys, and of the sections inside it that were not seen yet."""
    from longrec.settings_text import describe_settings

    yield _Page(path, written, cls, None, others)
    seen.add(cls)
    for key in describe_settings(cls):
        inside = f"{path}.{key.key}".removeprefix("."), f"{written}.{key.key}".removeprefix(".")
        yield _Page(*inside, cls, key, others)
        if key.section is not None and key.section not in seen:
            name = ".NAME" if key.is_mapping else ""
            yield from _walk(inside[0], inside[1] + name, key.section, {}, seen)


def _find_pages(topic: str, keys: Sequence[_Page]) -> list[_Page]:
    """Return the pages of a topic: of this path, else those of all paths that end in it."""
    path = re.sub(r"^data\.(?=schema\b)", "", topic)
    components = path.split(".")
    # data.schema.features.price.kind: a name of the config is in the path
    shorter = {".".join([*components[:at], *components[at + 1 :]]) for at in range(1, len(components) - 1)}
    exact = [page for page in keys if page.path == path] or [page for page in keys if page.path in shorter]
    return _drop_keys_of_sections(exact or [page for page in keys if page.path.endswith(f".{path}")])


def _drop_keys_of_sections(pages: Sequence[_Page]) -> list[_Page]:
    """Return the pages, without those of a key whose section is among them: its page says all of that."""
    sections = {page.path for page in pages if page.key is None}
    return [page for page in pages if page.key is None or page.path not in sections]


def _format_page(page: _Page) -> str:
    from longrec.settings_text import describe_settings
    from longrec.signatures import get_text

    if page.key is None:
        lines = [_format_title(page), *wrap_docstring(get_text(page.cls), "  "), ""]
        return "\n".join([*lines, *(line for one in describe_settings(page.cls) for line in _format_key(one, page))])
    lines = [line[2:] for line in _format_key(page.key, page, page.path)]
    return "\n".join([*lines, f"    on the command line: {page.written}=VALUE"])


def _format_title(page: _Page) -> str:
    if page.path == "pipeline":
        return "pipeline, a file of its own"
    if page.path in ("compress", "encode"):
        return f"settings of longrec {page.path}, as key=value after the run"
    return f"{page.path}, a section of a config"


def _format_key(key: SettingText, page: _Page, name: str | None = None) -> list[str]:
    """Return the lines of a key: name, type and default, then the meaning."""
    from longrec.features.feature import Feature, list_kinds
    from longrec.settings_text import join_defaults

    meaning = key.meaning
    if page.cls is Feature and (kinds := list_kinds({"from": "source", "as": "becomes"}.get(key.key, key.key))):
        meaning = f"{', '.join(kinds)}: {meaning}"
    summary = join_defaults(key, page.others)
    if key.section is not None and page.path and page.key is None:
        summary = re.sub(r"^((?:one )?section)", rf"\1 (longrec help {page.path}.{key.key})", summary)
    return [*_indent(f"{name or key.key}  {summary}", 2, 6), *_indent(meaning, 6, 6)]


def _indent(text: str, first: int, rest: int) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, " " * first, " " * rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def _find_model_pages(topic: str) -> list[str]:
    """Return the page of a model, or of a setting of a model (``din.attention``)."""
    from longrec.models.core import catalog

    name = _find_model(topic)
    if name == topic:
        lines = wrap_docstring(catalog.describe(topic).text)
        return ["\n".join([*lines, "", "Settings", *(_list_model_settings(topic) or ["  none"])])]
    lines = [] if name is None else _list_model_settings(name, topic.removeprefix(f"{name}."))
    return ["\n".join([f"{name}.{lines[0].strip()}", *(line[2:] for line in lines[1:])])] if lines else []


def _find_model(topic: str) -> str | None:
    """Return the model that a topic is, or begins with. Looking up a longer name would import a module of a shorter."""
    from longrec.models.core import catalog

    ends = [*(match.start() for match in re.finditer(r"\.", topic)), len(topic)]
    return next((topic[:end] for end in ends if catalog.is_model(topic[:end])), None)


def _list_model_settings(name: str, key: str = "") -> list[str]:
    """Return the lines of the settings of a model, or of one of them with those inside it.

    Models of other packages are not imported: types and defaults are as their source writes them.
    """
    from longrec.models.core import catalog

    if "." not in name:
        from longrec.models.core.settings_schema import find_facts

        pages = _walk("", "", find_facts(name).config, {}, set())
        texts = {page.path: _format_key(page.key, page, page.path) for page in pages if page.key is not None}
    else:
        texts = {}
        for one in catalog.settings(name):
            default = f"; default {one.default}" if one.default else ""
            texts[one.key] = [*_indent(f"{one.key}  {one.type}{default}", 2, 6), *_indent(one.meaning, 6, 6)]
    return [line for path, lines in texts.items() if not key or f"{path}.".startswith(f"{key}.") for line in lines]


def _describe_unknown(topic: str, named: Sequence[str], keys: Sequence[_Page]) -> str:
    from longrec.models.core import catalog

    paths = [page.path for page in keys]
    model = _find_model(topic) if "." in topic else None
    own = [] if model is None else [f"{model}.{one.key}" for one in catalog.settings(model)]
    near = nearest(topic, own or [*named, *catalog.names(), *paths])
    whole_word = re.compile(rf"(?<![\w.]){re.escape(topic)}(?![\w.])", re.I)
    mentioning = [page.path for page in keys if page.key is not None and whole_word.search(page.key.searched)]
    if near is None and mentioning:
        return f"no topic named {topic!r}; keys that mention it: {', '.join(mentioning[:6])}"
    if near is None:
        last = {path.rpartition(".")[2]: path for path in paths}
        tail = nearest(topic.rpartition(".")[2], last)
        near = None if tail is None else last[tail]
    hint = f"did you mean {near!r}?" if near else "longrec help lists the topics"
    return f"no topic named {topic!r}; {hint}"
