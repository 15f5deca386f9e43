"""Reference page of the Python names: the functions and classes of ``longrec``, with signature and docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from functools import cached_property
from types import ModuleType
from typing import Any

from reference_settings import CONFIG, SCHEMA, TOKENIZE, TOKENS, to_markdown

import longrec
from longrec.config import Strict
from longrec.signatures import get_text

INTRO = """The names of the package `longrec`. A name is imported on first use, so `import longrec` costs nothing.
`help(longrec.NAME)` prints the same text."""
FURTHER = (
    "longrec.training.finished_run.Run",
    "longrec.training.evaluate.Evaluation",
    "longrec.auditing.finding.Audit",
    "longrec.auditing.finding.Finding",
    "longrec.semantic_ids.diagnostics.diagnosis.Diagnosis",
    "longrec.metrics.Interval",
    "longrec.metrics.Comparison",
    "longrec.metrics.PolicyValue",
    "longrec.metrics.PolicyEstimate",
    "longrec.evaluation.results.PipelineEvaluation",
    "longrec.evaluation.candidate_log.CandidateReport",
    "longrec.serve.interface.Client",
    "longrec.serve.interface.Ranking",
    "longrec.serve.interface.RankedItem",
    "longrec.serve.interface.RecordedEvent",
    "longrec.serve.user_history.UserHistory",
    "longrec.serve.user_history.HistoryEvent",
)
"""Classes that the names of the package return."""
PAGES = {"schema.md": SCHEMA, "config.md": CONFIG, "tokens.md": TOKENS, "tokenize.md": TOKENIZE}
TITLES = ("Args", "Settings", "Returns", "Raises", "Attributes", "Yields")
SECTION = re.compile(rf"^({'|'.join(TITLES)}):$", re.M)


def format_page() -> str:
    """Return the page of all names."""
    lines = ["# Python", "", "<!-- Written by `make docs`; do not edit. -->", "", INTRO, ""]
    values = list_names()
    for name, value in values.items():
        lines += [f"## longrec.{name}", "", *_format_value(f"longrec.{name}", value)]
    lines += ["## Results", "", "Classes that these names return.", ""]
    for path in FURTHER:
        value = _import(path)
        if value not in values.values():
            lines += [f"### {value.__name__}", "", *_format_value(path, value)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def list_names() -> dict[str, Any]:
    """Return the functions and classes of the package by name. A module is replaced by its function of that name."""
    values = {name: getattr(longrec, name) for name in sorted(longrec.__all__)}
    return {n: longrec._import_name(n) if isinstance(v, ModuleType) and callable(v) else v for n, v in values.items()}


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _format_value(path: str, value: Any) -> list[str]:
    if inspect.isclass(value) and issubclass(value, Strict):
        return [format_google(get_text(value)), "", f"Its settings are [these keys]({_find_keys(value)}).", ""]
    if inspect.isclass(value):
        members = [(name, _unwrap(member)) for name, member in vars(value).items() if not name.startswith("_")]
        attributes = [_format_attribute(name, one) for name, (one, attribute) in members if one and attribute]
        methods = [_format_method(name, one) for name, (one, attribute) in members if one and not attribute]
        lines = [_format_code(f"class {path}", value), "", format_google(value.__doc__ or ""), ""]
        return [*lines, *attributes, "", *(line for method in methods for line in method)]
    if callable(value):
        return [_format_code(path, value), "", format_google(value.__doc__ or ""), ""]
    return [format_google(value.__doc__ or ""), ""]


def _find_keys(cls: type[Strict]) -> str:
    """Return the link to the reference of the keys of a settings class."""
    for page, sections in PAGES.items():
        for section in sections:
            if section.cls is cls:
                return f"{page}#{section.heading.lower()}"
    raise ValueError(f"no reference of the keys of {cls.__name__}")


def _unwrap(member: Any) -> tuple[Any, bool]:
    """Return the documented function of a member of a class, and True for a property."""
    attribute = isinstance(member, property | cached_property)
    if attribute:
        function = member.fget if isinstance(member, property) else member.func
    else:
        function = getattr(member, "__func__", member)
    return (function if inspect.isfunction(function) and function.__doc__ else None), attribute


def _format_attribute(name: str, function: Any) -> str:
    return f"- `{name}`: {to_markdown(inspect.cleandoc(function.__doc__).partition(chr(10) * 2)[0])}"


def _format_method(name: str, function: Any) -> list[str]:
    return [_format_code(f".{name}", function), "", format_google(function.__doc__ or ""), ""]


def _format_code(path: str, value: Any) -> str:
    parameters, result = _format_signature(value)
    code = f"{path}({', '.join(parameters)}){result}"
    if len(code) > 88:
        code = f"{path}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){result}"
    return f"```text\n{code}\n```"


def _format_signature(value: Any) -> tuple[list[str], str]:
    """Return the parameters of a function or class as text, and its result."""
    signature = inspect.signature(value)
    texts = []
    for one in signature.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in texts and not any(word.startswith("*") for word in texts):
            texts.append("*")
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        word = f"{stars}{one.name}{_format_annotation(': ', one.annotation)}"
        texts.append(word if one.default is one.empty else f"{word} = {_format_default(one.default)}")
    return texts, "" if inspect.isclass(value) else _format_annotation(" -> ", signature.return_annotation)


def _format_annotation(sign: str, annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    text = getattr(annotation, "__forward_arg__", annotation)
    return sign + (text if isinstance(text, str) else inspect.formatannotation(annotation))


def _format_default(default: Any) -> str:
    return default.__name__ if inspect.isroutine(default) else repr(default)


def format_google(docstring: str) -> str:
    """Return a docstring in Google's form as Markdown."""
    pieces = SECTION.split(inspect.cleandoc(docstring))
    lines = [_format_prose(pieces[0])]
    for title, body in zip(pieces[1::2], pieces[2::2]):
        block, _, after = body.strip("\n").partition("\n\n")
        lines += [
            "",
            f"**{'Arguments' if title == 'Args' else title}**",
            "",
            *_format_entries(title, textwrap.dedent(block)),
        ]
        lines += ["", _format_prose(textwrap.dedent(after))] if after.strip() else []
    return "\n".join(lines)


def _format_entries(title: str, block: str) -> list[str]:
    if title in ("Returns", "Yields"):
        return [to_markdown(block)]
    entries = re.split(r"\n(?=\S)", block)
    lines = []
    for entry in entries:
        name, colon, text = " ".join(entry.split()).partition(": ")
        if title == "Settings":  # "name: type = default", and the meaning below
            text = " ".join(entry.partition("\n")[2].split())
        lines.append(f"- `{name}`: {to_markdown(text)}" if colon else f"- {to_markdown(entry)}")
    return lines


def _format_prose(text: str) -> str:
    """Return paragraphs as text, and examples and indented blocks as code."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith(">>> "):
            paragraphs.append(f"```pycon\n{paragraph}\n```")
        elif paragraph.startswith("    "):
            paragraphs.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        else:
            paragraphs.append(to_markdown(paragraph))
    return "\n\n".join(paragraphs)
