"""What models there are, told from their source: nothing is imported, torch least of all."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import longrec.models
from longrec.errors import ConfigError, UnknownName

_NOT_MODELS = {"base", "artifact", "catalogue"}
KINDS = ("Ranker", "Retriever", "Generator", "Encoder", "Reranker", "Model")
"""Classes of ``models/base.py`` (present and planned) that a model derives from."""


@dataclass(frozen=True)
class Card:
    """One line of ``longrec models``.

    Attributes:
        name: what a config writes after ``model.name``.
        kind: ranker, retriever...
        title: title of the paper.
        source: authors and venue.
        link: where to read it.
        year: year of publication, or None where the source names none.
        reads_history: whether it reads what the user did before.
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


def names() -> list[str]:
    """Models that ship with the package, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(longrec.models.__path__))
    return sorted(name for name in found if name not in _NOT_MODELS and not name.startswith("_"))


def describe(name: str) -> Card:
    """The card of a model: ``din`` is ours, ``my_team.models.din2`` is yours.

    Raises:
        UnknownName: no such model.
        ConfigError: its file holds no class derived from a kind of ``models/base.py``, or several.
    """
    path = _path(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    kinds = {node: _kind(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    models = [(node, kind) for node, kind in kinds.items() if kind]
    if len(models) != 1:
        found = ", ".join(node.name for node, _ in models) or "none"
        raise ConfigError(str(path), [f"must define exactly one model, found {found}"])
    node, kind = models[0]
    head, *paragraphs = [" ".join(part.split()) for part in text.split("\n\n")] or [""]
    source = paragraphs[0] if paragraphs else ""
    link = re.search(r"https?://\S+[^\s.,;)]", source)
    year = re.search(r"\b(?:19|20)\d\d\b", source.replace(link[0], "") if link else source)
    return Card(
        name=name,
        kind=kind.lower(),
        title=head.partition(": ")[2].rstrip(".") or head.rstrip("."),
        source=(source.replace(link[0], "") if link else source).strip(" ."),
        link=link[0] if link else "",
        year=int(year[0]) if year else None,
        reads_history=_flag(node, "reads_history"),
        text=text,
    )


def _path(name: str) -> Path:
    if "." not in name:
        if name not in names():
            raise UnknownName("model", name, names())
        return Path(next(iter(longrec.models.__path__))) / f"{name}.py"
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise UnknownName("model", name, names())
    return Path(spec.origin)


def _kind(node: ast.ClassDef) -> str:
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    return next((base for base in bases if base in KINDS), "")


def _flag(node: ast.ClassDef, name: str) -> bool:
    for line in node.body:
        if not isinstance(line, ast.Assign | ast.AnnAssign):
            continue
        targets = line.targets if isinstance(line, ast.Assign) else [line.target]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets):
            return isinstance(line.value, ast.Constant) and line.value.value is True
    return False
