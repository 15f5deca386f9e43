"""EasyRec's pipeline configurations, converted to a job config.

    imported = read("their.config")
    imported.job()                 # the job as one mapping, schema inside: what ``longrec train their.config`` trains
    write(imported, "folder")      # the same as config.yaml, schema.yaml and NOTES.md

Both hold the same settings, so they train to the same numbers. ``imported.notes`` has one line per field that cannot be
carried over. A field without which the model would be another one is a fault. All faults are reported together, with
line and column.
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
from longrec.interop.easyrec_fit import convert_evaluate, convert_fit, picks_best
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_models import convert_model
from longrec.interop.easyrec_rows import find_keys, find_label, find_paths, read_rows
from longrec.interop.easyrec_section import Note, Reading, Section
from longrec.interop.easyrec_tasks import Tasks
from longrec.interop.text_format import Message, Position


@dataclass(frozen=True)
class ImportedConfig:
    """A converted configuration. Paths in it are ``Path`` objects until it is written or trained.

    Attributes:
        source: the configuration.
        config: name, data (without schema), model, fit and evaluate.
        schema: the schema.
        notes: fields that are converted with changes, or not converted, in the order of the file.
        choices: how user, item and the sides of features were chosen, one line each.
    """

    source: Path
    config: Mapping[str, Any]
    schema: Mapping[str, Any]
    notes: tuple[Note, ...]
    choices: tuple[str, ...]
    reading: Reading

    def job(self) -> dict[str, Any]:
        """Return the whole job with absolute paths, schema inside."""
        job: dict[str, Any] = _map_paths(self.config, lambda path: str(path.absolute()))
        job["data"]["schema"] = _map_paths(self.schema, lambda path: str(path.absolute()))
        return job

    def locate(self, faults: list[str]) -> list[str]:
        """Add to each fault of the job the line of the configuration that it comes from."""
        return self.reading.locate(faults)

    def make_relative(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return config and schema with paths relative to a folder."""

        def format_path(path: Path) -> str:
            return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()

        config: dict[str, Any] = _map_paths(self.config, format_path)
        config["data"] = {"schema": "schema.yaml", **config["data"]}
        return config, _map_paths(self.schema, format_path)


def read(path: str | Path, *, user: str | None = None, item: str | None = None, options: bool = True) -> ImportedConfig:
    """Read a configuration.

    Args:
        user: column of the user. Default: GAUC's uid_field, else a column with a usual name, else the row number.
        item: column of the item. Default: a column with a usual name.
        options: messages name user and item by the options of ``longrec import``, else by settings of a job.

    Raises:
        ConfigError: if the file has faults. All are listed, each with file, line and column.
    """
    path = Path(path)
    return read_tree(text_format.read(path), path, user=user, item=item, options=options)


def read_tree(
    tree: Message, path: Path, *, user: str | None = None, item: str | None = None, options: bool = True
) -> ImportedConfig:
    """Read a parsed configuration, see :func:`read`. ``path`` names it, and its paths are relative to that file."""
    return _Reader(path, tree, options).read_config(user, item)


class _Reader:
    """Converter of a configuration, section by section in the order of their dependencies."""

    def __init__(self, path: Path, tree: Message, options: bool) -> None:
        self.path, self.reading = path, Reading(str(path), options=options)
        _refuse_torch(tree, self.reading)
        self.top = Section(self.reading, "EasyRecConfig", tree, "", Position(1, 1))

    def read_config(self, user: str | None, item: str | None) -> ImportedConfig:
        top, folder = self.top, self.path.parent
        rows = read_rows(top)
        tasks = Tasks(top)
        target = find_label(top, rows, tasks.columns)
        user, item, why_user, why_item = find_keys(top, rows, user, item, [target, *tasks.columns], tasks.metrics)
        features = Features(top, rows, folder, user, item)
        tasks.assign_names(spec.ours for spec in features.specs.values())
        histories = Histories(features)
        model, model_section = convert_model(top.section("model_config"), features, histories, tasks)
        features.note_unread()
        fit = convert_fit(top, model.get("name") == "wide_deep", model_section, tasks, rows)
        evaluate = convert_evaluate(top)
        files = {
            "train": find_paths(top, "train", folder),
            "valid" if picks_best(top) else "test": find_paths(top, "eval", folder),
        }
        schema: dict[str, Any] = {"user": user, "item": item, "label": target, "features": features.convert_features()}
        schema["features"] |= tasks.convert_labels(rows)
        if histories.settings:
            schema["histories"] = histories.settings
        else:
            # Without histories in the rows, the schema needs a timestamp: the row number.
            schema["time"] = {"column": rows.add_row_number(), "unit": "step"}
        config: dict[str, Any] = {
            "name": self._choose_name(),
            "data": {"log": rows.convert_log(files), "split": {"by": "files"}},
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
            "features of the candidate (side: candidate): "
            + (", ".join(name for name, feature in schema["features"].items() if feature.get("side")) or "none")
            + "; keys of attention, and groups and features with an item's name",
        )
        return ImportedConfig(self.path, config, schema, tuple(sorted(self.reading.notes)), choices, self.reading)

    def _choose_name(self) -> str:
        """Return the run's name: the last component of ``model_dir``, else the name of the file."""
        folder_name = self.top.get("model_dir", "").rstrip("/").rpartition("/")[2] or self.path.stem
        name = re.sub(r"[^A-Za-z0-9._-]", "_", folder_name).lstrip("._-")
        self.top.record_origin("name", "model_dir")
        return name or "easyrec"


def _refuse_torch(tree: Message, reading: Reading) -> None:
    """Refuse TorchEasyRec's configurations, whose fields differ, with one fault instead of many."""
    for one in tree.fields:
        for inner in one.value.fields if isinstance(one.value, Message) else ():
            if inner.name in ("sparse_optimizer", "dataset_type") or (
                one.name == "feature_configs" and inner.name.endswith("_feature")
            ):
                description = (
                    f"{one.name}.{inner.name} is TorchEasyRec's; expected EasyRec's fields, which this version reads"
                )
                reading.fault(inner.position, description)
                raise reading.error()


def _map_paths(value: Any, format_path: Callable[[Path], str]) -> Any:
    """Return a copy of settings with every path as text."""
    if isinstance(value, Mapping):
        return {key: _map_paths(inner, format_path) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_map_paths(inner, format_path) for inner in value]
    return format_path(value) if isinstance(value, Path) else value
