"""Catalog of the models, read from their source code. No model and no torch is imported."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longrec.errors import ConfigError, UnknownName

_FOLDER = Path(__file__).parent.parent

KINDS = ("Ranker", "Reranker", "Encoder", "Extractor", "Retriever", "FittedRetriever", "VectorRetriever", "Model")
"""Classes of ``models/core/kinds.py`` that models derive from."""


@dataclass(frozen=True)
class Card:
    """One line of ``longrec models``.

    Attributes:
        name: value of ``model.name`` in a config.
        kind: ranker, retriever...
        title: title of the paper.
        source: authors and venue.
        link: URL of the paper.
        year: year of publication, or None if the source names none.
        reads_history: True if the model reads the histories of the user.
        text: the whole docstring.
    """

    name: str
    kind: str
    title: str
    source: str
    link: str
    year: int | None
    reads_history: bool
    text: str


@dataclass(frozen=True)
class Setting:
    """One setting of a model.

    Attributes:
        key: dotted if it is inside another one. ``NAME`` stands for any name.
        type: the type as text, or the choices.
        default: as the source writes it. Empty if there is none.
        meaning: its description.
    """

    key: str
    type: str
    default: str
    meaning: str


def names() -> list[str]:
    """Return the models that ship with the package, in alphabetical order."""
    # Not pkgutil, which takes 30 times as long: models and configs look names up many times.
    files = (file for file in os.listdir(_FOLDER) if file.endswith(".py"))
    return sorted(file.removesuffix(".py") for file in files if not file.startswith("_"))


def is_model(name: str) -> bool:
    """Return True if there is a model of that name, in this package or another one."""
    try:
        _model(_parse(_path(name)), Path(name))
    except ConfigError:
        return False
    return True


def describe(name: str) -> Card:
    """Return the card of a model: ``din`` from this package, or ``my_team.models.din2`` from another one.

    Raises:
        UnknownName: if there is no such model.
        ConfigError: if its file does not define exactly one class derived from a kind of ``models/core/kinds.py``.
    """
    tree = _parse(_path(name))
    node, kind = _model(tree, _path(name))
    text = ast.get_docstring(tree) or ""
    head, source = [" ".join(paragraph.split()) for paragraph in [*text.split("\n\n"), ""]][:2]
    link = re.search(r"https?://\S+[^\s.,;)]", source)
    source_text = source.replace(link[0], "") if link else source
    year = re.search(r"\b(?:19|20)\d\d\b", source_text)
    return Card(
        name=name,
        kind="retriever" if kind.endswith("Retriever") else kind.lower(),
        title=(head.partition(": ")[2] or head).rstrip("."),
        source=source_text.strip(" ."),
        link=link[0] if link else "",
        year=int(year[0]) if year else None,
        reads_history=_attribute(tree, node, "reads_history") == "True",
        text=text,
    )


def settings(name: str) -> list[Setting]:
    """Return the settings of a model. Nested settings follow the one that holds them.

    Raises:
        UnknownName, ConfigError: as ``describe``.
    """
    tree = _parse(_path(name))
    node, _ = _model(tree, _path(name))
    return list(_settings(tree, _attribute(tree, node, "Config")))


def variants(name: str) -> list[str]:
    """Return the settings that the conformance suite runs besides the defaults, as the source writes them.

    Raises:
        UnknownName, ConfigError: as ``describe``.
    """
    node, _ = _model(_parse(_path(name)), _path(name))
    value = _assigned(node.body, "variants")
    return [ast.unparse(one) for one in value.elts] if isinstance(value, ast.Tuple | ast.List) else []


def help_text(name: str) -> str:
    """Return the docstring of a model's file, then each of its settings: type, default, meaning.

    Raises:
        UnknownName, ConfigError: as ``describe``.
    """
    lines = [describe(name).text.strip(), "", "Settings"]
    for one in settings(name):
        default = f" = {one.default}" if one.default else ""
        lines += [f"    {one.key}: {one.type}{default}", f"        {one.meaning}"]
    return "\n".join(lines if lines[-1] != "Settings" else [*lines, "    none"])


def _path(name: str) -> Path:
    if "." not in name:
        if name not in names():
            raise UnknownName("model", name, names())
        return _FOLDER / f"{name}.py"
    path = _source(name)
    if path is None:
        raise UnknownName("model", name, names())
    return path


def _source(module: str) -> Path | None:
    """Return the file of a module. Its packages are imported, the module itself is not."""
    if not all(component.isidentifier() for component in module.split(".")):
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _model(tree: ast.Module, path: Path) -> tuple[ast.ClassDef, str]:
    """Return the one class of a file that derives from a kind, and the kind."""
    matches = [(node, kind) for node in tree.body if isinstance(node, ast.ClassDef) for kind in _find_kinds(tree, node)]
    if len(matches) != 1:
        class_names = ", ".join(node.name for node, _ in matches) or "none"
        raise ConfigError(str(path), [f"must define exactly one model, found {class_names}"])
    return matches[0]


def _find_kinds(tree: ast.Module, node: ast.ClassDef) -> list[str]:
    """Return a list with the kind that a class derives from, also through a class of ``models/core``. Empty if none."""
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    own = [base for base in bases if base in KINDS]
    return (
        own or [kind for module, base in _bases(tree, node) if module is not tree for kind in _find_kinds(module, base)]
    )[:1]


def _bases(tree: ast.Module, node: ast.ClassDef) -> Iterator[tuple[ast.Module, ast.ClassDef]]:
    """Yield the direct base classes that are defined in the file or in ``models/core``, each with its module."""
    for base in node.bases:
        name = ast.unparse(base)
        module = tree if _class(tree, name) else _core_module(tree, name)
        base_class = _class(module, name) if module else None
        if module and base_class:
            yield module, base_class


def _class(tree: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _core_module(tree: ast.Module, name: str) -> ast.Module | None:
    """Return the module of ``models/core``, except ``base`` and ``kinds``, that a name is imported from."""
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and any(alias.name == name for alias in line.names):
            folder, _, file = (line.module or "").rpartition(".")
            if folder == "longrec.models.core" and file not in ("base", "kinds"):
                return _parse(Path(__file__).with_name(f"{file}.py"))
    return None


def _attribute(tree: ast.Module, node: ast.ClassDef, name: str) -> str:
    """Return the value that a class assigns to a name or inherits. Empty if there is none."""
    own = _assigned(node.body, name)
    if own is not None:
        return ast.unparse(own)
    return next((value for module, base in _bases(tree, node) if (value := _attribute(module, base, name))), "")


def _assigned(body: list[ast.stmt], name: str) -> ast.expr | None:
    """Return the value of ``name = ...`` or ``name: ... = ...`` in a body."""
    for line in body:
        if isinstance(line, ast.Assign | ast.AnnAssign):
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return line.value
    return None


def _settings(tree: ast.Module, config: str, prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of the config class of that name, those of its base classes first.

    A setting that holds another config class of its file, or a mapping to such, is followed by the settings of that.
    """
    node = _class(tree, config)
    for name, (module, line) in (_lines(tree, node) if node else {}).items():
        key = prefix + name
        annotation = _strip_validators(line.annotation)
        kind = ast.unparse(annotation)
        default, meaning = line.value, ""
        if isinstance(default, ast.Call) and ast.unparse(default.func).endswith("Field"):
            options = {word.arg: word.value for word in default.keywords}
            description = options.get("description")
            meaning = str(description.value) if isinstance(description, ast.Constant) else ""
            default = default.args[0] if default.args else options.get("default")
        default_text = "" if default is None or ast.unparse(default) == "..." else ast.unparse(default)
        yield Setting(key, _type(module, annotation), default_text, meaning)
        inner = re.fullmatch(r"(dict\[str, )?(\w+)\]?(?: \| None)?", kind)
        if inner and _class(module, inner[2]):
            yield from _settings(module, inner[2], f"{key}.NAME." if inner[1] else f"{key}.")


def _strip_validators(annotation: ast.expr) -> ast.expr:
    """Return the type inside ``Annotated[X, ...]``."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated")):
        return annotation
    inner = annotation.slice
    return inner.elts[0] if isinstance(inner, ast.Tuple) else inner


def _lines(tree: ast.Module, node: ast.ClassDef) -> dict[str, tuple[ast.Module, ast.AnnAssign]]:
    """Return the annotated names of a class and of its base classes, each with its module."""
    lines: dict[str, tuple[ast.Module, ast.AnnAssign]] = {}
    for module, base in _bases(tree, node):
        lines |= _lines(module, base)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and not _is_class_variable(line):
            lines[line.target.id] = tree, line
    return lines


def _is_class_variable(line: ast.AnnAssign) -> bool:
    return ast.unparse(line.annotation).startswith("ClassVar")


def _type(tree: ast.Module, annotation: ast.expr) -> str:
    """Return a type as readable text. Aliases of the file, and of our files it imports, are expanded."""
    text = ast.unparse(annotation)
    for _ in range(2):  # an alias may hold another
        for word in dict.fromkeys(re.findall(r"\b[A-Z]\w*", text)):
            alias = _alias(tree, word)
            if alias:
                text = re.sub(rf"\b{word}\b", alias.replace("\\", r"\\"), text)
    return re.sub(r"\bAnnotated\[(\w+), [^][]*\]", r"\1", text)


def _alias(tree: ast.Module, name: str) -> str:
    value = _assigned(tree.body, name)
    if value is None:
        for line in tree.body:
            if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("longrec."):
                source = _source(line.module or "") if any(name == (a.asname or a.name) for a in line.names) else None
                value = value or (_assigned(_parse(source).body, name) if source else None)
    text = ast.unparse(_strip_validators(value)) if value is not None else ""
    choices = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", text)
    return choices[1].replace("'", "").replace(", ", " | ") if choices else text
