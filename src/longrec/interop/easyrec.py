"""EasyRec's pipeline configurations, read into the words of a job of ours.

    found = read("their.config")
    found.job()                    # the job as one mapping, schema inside: what ``longrec train their.config`` trains
    write(found, "folder")         # the same as config.yaml, schema.yaml and NOTES.md

Both are made of the same words, so they train to the same numbers. What cannot be carried over is in ``found.notes``,
a line a field; what would make another model of it is a fault, and all faults are told at once with line and column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrec.interop import text_format
from longrec.interop.easyrec_features import Features
from longrec.interop.easyrec_fit import evaluate_words, fit_words, picks_best
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_models import model_words
from longrec.interop.easyrec_rows import keys, label, paths, read_rows
from longrec.interop.easyrec_section import Note, Reading, Section
from longrec.interop.easyrec_tasks import Tasks
from longrec.interop.text_format import Message, Place

SUFFIXES = (".config", ".pbtxt", ".prototxt")


@dataclass(frozen=True)
class Imported:
    """A configuration in our words; paths in it are ``Path`` objects until it is written or trained.

    Attributes:
        source: the configuration.
        config: name, data (without schema), model, fit and evaluate.
        schema: the schema.
        notes: what is carried with a difference or not carried, in the order of the file.
        choices: how user, item and the owners of features were found, a line each.
    """

    source: Path
    config: Mapping[str, Any]
    schema: Mapping[str, Any]
    notes: tuple[Note, ...]
    choices: tuple[str, ...]
    reading: Reading

    def job(self) -> dict[str, Any]:
        """The whole job with absolute paths, schema inside."""
        made: dict[str, Any] = _with_paths(self.config, lambda path: str(path.absolute()))
        made["data"]["schema"] = _with_paths(self.schema, lambda path: str(path.absolute()))
        return made

    def located(self, faults: list[str]) -> list[str]:
        """Faults of the job, each with the line of the configuration that it comes from."""
        return self.reading.located(faults)

    def relative(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config and schema with paths as seen from a folder."""

        def seen(path: Path) -> str:
            return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()

        config: dict[str, Any] = _with_paths(self.config, seen)
        config["data"] = {"schema": "schema.yaml", **config["data"]}
        return config, _with_paths(self.schema, seen)


def is_easyrec(path: object) -> bool:
    """Whether a path names an EasyRec configuration, by its ending."""
    return isinstance(path, str | Path) and Path(path).suffix.lower() in SUFFIXES


def read(path: str | Path, *, user: str | None = None, item: str | None = None, options: bool = True) -> Imported:
    """Read a configuration.

    Args:
        user: column of the user; by GAUC's uid_field, by a telling name, or the number of the row when not given.
        item: column of the item; by a telling name when not given.
        options: whether messages name user and item by the options of ``longrec import``, or by settings of a job.

    Raises:
        ConfigError: all faults, each with file, line and column.
    """
    path = Path(path)
    return of_tree(text_format.read(path), path, user=user, item=item, options=options)


def of_tree(
    tree: Message, path: Path, *, user: str | None = None, item: str | None = None, options: bool = True
) -> Imported:
    """:func:`read` of a configuration that is parsed already; ``path`` names it and is where its paths start."""
    return _Reader(path, tree, options).imported(user, item)


class _Reader:
    """The parts in the order in which they need each other."""

    def __init__(self, path: Path, tree: Message, options: bool) -> None:
        self.path, self.reading = path, Reading(str(path), options=options)
        _refuse_torch(tree, self.reading)
        self.top = Section(self.reading, "EasyRecConfig", tree, "", Place(1, 1))

    def imported(self, user: str | None, item: str | None) -> Imported:
        top, folder = self.top, self.path.parent
        rows = read_rows(top)
        tasks = Tasks(top)
        target = label(top, rows, tasks.columns)
        user, item, why_user, why_item = keys(top, rows, user, item, [target, *tasks.columns], tasks.metrics)
        features = Features(top, rows, folder, user, item)
        tasks.name(spec.ours for spec in features.specs.values())
        histories = Histories(features)
        model, settings = model_words(top.section("model_config"), features, histories, tasks)
        features.note_unread()
        fit = fit_words(top, model.get("name") == "wide_deep", settings, tasks, rows)
        evaluate = evaluate_words(top)
        files = {
            "train": paths(top, "train", folder),
            "valid" if picks_best(top) else "test": paths(top, "eval", folder),
        }
        schema: dict[str, Any] = {"user": user, "item": item, "label": target, "features": features.schema_words()}
        schema["features"] |= tasks.features(rows)
        if histories.words:
            schema["histories"] = histories.words
        else:
            # Without histories that rows carry, the schema needs a moment: the rows are taken in their order.
            schema["time"] = {"column": rows.numbered(), "unit": "step"}
        config: dict[str, Any] = {
            "name": self._name(),
            "data": {"log": rows.log_words(files), "split": {"by": "parts"}},
            "model": model,
            "fit": fit,
            **({"evaluate": evaluate} if evaluate else {}),
        }
        top.settle()
        if self.reading.faults:
            raise self.reading.error()
        choices = (
            f"user: {user}, {why_user}",
            f"item: {item}, {why_item}",
            "features of the candidate (table: candidate): "
            + (", ".join(name for name, words in schema["features"].items() if words.get("table")) or "none")
            + "; keys of attention, groups and names that tell of items",
        )
        return Imported(self.path, config, schema, tuple(sorted(self.reading.notes)), choices, self.reading)

    def _name(self) -> str:
        """What the run is called: the last part of ``model_dir``, else the name of the file."""
        given = self.top.get("model_dir", "").rstrip("/").rpartition("/")[2] or self.path.stem
        name = re.sub(r"[^A-Za-z0-9._-]", "_", given).lstrip("._-")
        self.top.origin("name", "model_dir")
        return name or "easyrec"


def _refuse_torch(tree: Message, reading: Reading) -> None:
    """Refuse TorchEasyRec's configurations, which look alike but have other fields, with one fault in place of many."""
    for one in tree.fields:
        for inner in one.value.fields if isinstance(one.value, Message) else ():
            if inner.name in ("sparse_optimizer", "dataset_type") or (
                one.name == "feature_configs" and inner.name.endswith("_feature")
            ):
                words = (
                    f"{one.name}.{inner.name} is TorchEasyRec's; expected EasyRec's fields, which this version reads"
                )
                reading.fault(inner.place, words)
                raise reading.error()


def _with_paths(value: Any, seen: Callable[[Path], str]) -> Any:
    """A copy of words with every path as text."""
    if isinstance(value, Mapping):
        return {key: _with_paths(inner, seen) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_paths(inner, seen) for inner in value]
    return seen(value) if isinstance(value, Path) else value
