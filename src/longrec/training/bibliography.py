"""Bibliography of a job: its model, the models inside it, and the models that wrote the tokens that it reads.

Citing a model by its name does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longrec.models.core.catalog import describe, is_model, names
from longrec.models.core.citation import Entry, entries


@dataclass(frozen=True)
class Bibliography:
    """Papers to cite.

    Attributes:
        entries: BibTeX of the models, each paper once, and of LongRec.
        models: models of each section of a job (``model``, ``model.base``, ``histories.tokens``).
        unread: sections whose models cannot be determined, each with the reason.
    """

    entries: list[Entry]
    models: dict[str, list[str]]
    unread: dict[str, str]


@dataclass
class CitedModels:
    """Models and unread sections of a source."""

    models: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def bibliography(self) -> Bibliography:
        """Return the papers of the models, and of LongRec.

        Raises:
            ConfigError: a model whose docstring does not name its paper.
        """
        model_names = (name for names in self.models.values() for name in names)
        return Bibliography(entries(model_names), self.models, self.unread)

    def read(self, section_path: str, store: str) -> None:
        """Add the models that wrote a store of tokens or of knowledge: the source, and the models inside it."""
        from longrec.training.token_source import find_source  # imports torch

        folder = None if "://" in store else find_source(store)
        if folder is None:
            self.unread[section_path] = f"{store}: it holds no source, so the model that wrote it is unknown"
            return
        try:
            about = json.loads((folder / "model" / "model.json").read_text(encoding="utf-8"))
            self.models[section_path] = [
                name for _, name in _walk_models({**about["config"], "name": about["name"]}, section_path)
            ]
        except (OSError, ValueError, LookupError, TypeError) as error:
            self.unread[section_path] = f"{folder}: not readable ({' '.join(str(error).split())})"


def collect_citations(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> CitedModels:
    """Collect the models of a source.

    Args:
        source: a model, a config (a path or a dict), the folder of a run, or a folder of tokens or knowledge. The name
            of a model of LongRec takes precedence over a file of the same name.
        overrides: settings that replace those of a config.

    Raises:
        UnknownName: a name that is neither a model nor a file.
        ConfigError: all faults of the config.
        RunError: a folder that is none of these.
    """
    if isinstance(source, str) and _names_a_model(source):
        return CitedModels({"model": [describe(source).name]})
    if not isinstance(source, Mapping) and Path(source).is_dir():
        from longrec.training.finished_run import require_run
        from longrec.training.token_source import find_source

        if find_source(source) is not None:
            citations = CitedModels()
            citations.read("source", str(source))
            return citations
        require_run(Path(source))
        source = Path(source) / "config.yaml"
    return _cite_job(source, overrides)


def _names_a_model(source: str) -> bool:
    return source in names() or (not Path(source).exists() and (source.isidentifier() or is_model(source)))


def _cite_job(source: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> CitedModels:
    from longrec.training.job import read_job

    job = read_job(source, overrides)
    citations = CitedModels({path: [name] for path, name in _walk_models(job.model, "model")})
    stores = {f"features.{name}": feature.source for name, feature in job.schema.features.items()}
    stores |= {f"histories.{name}": history.source for name, history in job.schema.histories.items()}
    for section_path, store in stores.items():
        if store is not None:
            citations.read(section_path, store)
    return citations


def _walk_models(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of a model and of all models that its settings name, at any depth."""
    name = section.get("name")
    if isinstance(name, str) and is_model(name):
        yield path, name
    for key, value in section.items():
        for inner in _find_sections(value):
            yield from _walk_models(inner, f"{path}.{key}")


def _find_sections(value: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        return [value]
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []
