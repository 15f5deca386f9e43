"""Folders of semantic IDs: the codes of all items, and the tokenizer that encodes new ones.

semantic_ids.json       format, method, settings, version, levels, size, widths, facts
tokenizer.safetensors   codebooks float32 [L, K, D], and the weights of an encoder and a decoder
items.parquet           item, code_1 .. code_L (int32, from 0), code_(L+1) (index among twins, 0 first), version

A folder changes only by new items. Codes, suffixes and versions of its items never change.

Shapes: N items, L levels, X width of an item vector.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longrec.errors import DataError, RunError
from longrec.reporting.tables import write_atomically
from longrec.resources import resource_error
from longrec.semantic_ids.collisions import describe_collisions, index_twins
from longrec.semantic_ids.facts_text import format_facts
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.tokenizer import Tokenizer

FORMAT = 1
ABOUT, WEIGHTS, ITEMS = "semantic_ids.json", "tokenizer.safetensors", "items.parquet"
"""Files of a folder."""


@dataclass(frozen=True, repr=False)
class SemanticIds:
    """The semantic IDs of a catalog.

    Attributes:
        items: keys of the items, as given, ``[N]``.
        codes: int32 ``[N, L]``.
        tokenizer: the fitted tokenizer.
        suffix: index of each item among its twins, int32 ``[N]``.
        versions: version that added each item, int32 ``[N]``.
        facts: what the fit has measured: items, facts of each level, collisions, settings of the capacity.
        key: name of the column of the items.
    """

    items: pa.Array
    codes: Int32[NDArray[np.int32], "N L"]
    tokenizer: Tokenizer
    suffix: Int32[NDArray[np.int32], " N"]
    versions: Int32[NDArray[np.int32], " N"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    key: str = "item"

    @classmethod
    def build(
        cls, items: pa.Array, codes: NDArray[np.int32], tokenizer: Tokenizer, facts: Mapping[str, Any], key: str
    ) -> SemanticIds:
        """Return the semantic IDs of the items that a tokenizer was fitted on: version 1."""
        ones = np.ones(len(codes), np.int32)
        return cls(items, codes, tokenizer, index_twins(codes), ones, facts, key)

    @property
    def version(self) -> int:
        """The newest version."""
        return int(self.versions.max(initial=1))

    @property
    def levels(self) -> int:
        """Number of levels, without the suffix."""
        return self.codes.shape[1]

    def to_table(self) -> pa.Table:
        """Return the columns of ``items.parquet``."""
        columns: dict[str, Any] = {self.key: self.items}
        for level in range(self.levels):
            columns[f"code_{level + 1}"] = np.ascontiguousarray(self.codes[:, level])
        return pa.table({**columns, f"code_{self.levels + 1}": self.suffix, "version": self.versions})

    def to_text(self) -> str:
        """Return what the semantic IDs are like: items, levels, collisions and the capacity, as lines of text."""
        added = int((self.versions == self.version).sum()) if self.version > 1 else 0
        return format_facts(self.tokenizer, self.facts, self.version, added)

    def __repr__(self) -> str:
        return self.to_text()

    def append(self, items: pa.Array, vectors: Float[Tensor, "N X"]) -> SemanticIds:
        """Return the semantic IDs with further items, as one more version. The codes of the others do not change.

        A new item gets the nearest codes of the tokenizer, and the next suffix among its twins.

        Raises:
            DataError: an item that has codes already or occurs twice, or vectors of another width.
        """
        width = self.tokenizer.width
        if vectors.ndim != 2 or len(vectors) != len(items) or vectors.shape[1] != width:
            what = f"{len(items):,} items with vectors of the shape {tuple(vectors.shape)}"
            raise DataError("new items", what, f"one vector of width {width} per item")
        items = _cast(items, self.items.type)
        both = pa.concat_arrays([self.items, items])
        if len(both.unique()) < len(both):
            raise DataError(
                "new items",
                "an item twice, or one that has codes already",
                "new items, each once",
                "leave out the items of the folder: codes never change",
            )
        if not len(items):
            return self
        codes = self.tokenizer.codes(vectors).numpy()
        suffix = index_twins(codes, self.codes)
        versions = np.full(len(codes), self.version + 1, np.int32)
        every = np.concatenate([self.codes, codes])
        facts = {**self.facts, "items": len(every), **describe_collisions(every)}
        return replace(
            self,
            items=both,
            codes=every,
            suffix=np.concatenate([self.suffix, suffix]),
            versions=np.concatenate([self.versions, versions]),
            facts=facts,
        )

    def write(self, folder: str | Path) -> Path:
        """Write the folder. Each file is replaced atomically, the list of items last.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in self.tokenizer.tensors().items()}
        about = {
            "format": FORMAT,
            "tokenizer": self.tokenizer.name,
            "settings": self.tokenizer.settings.model_dump(mode="json"),
            "version": self.version,
            "levels": self.levels,
            "size": self.tokenizer.codebooks.shape[1],
            "width": self.tokenizer.codebooks.shape[2],
            "vector_width": self.tokenizer.width,
            "key": self.key,
            "facts": dict(self.facts),
        }
        text = json.dumps(about, indent=1) + "\n"
        with _replaced(folder / WEIGHTS) as path:
            save_file(tensors, path)
        write_atomically(folder / ABOUT, text)
        with _replaced(folder / ITEMS) as path:
            pq.write_table(self.to_table(), path)
        return folder

    @classmethod
    def open(cls, folder: str | Path) -> SemanticIds:
        """Open a folder.

        Raises:
            RunError: a file that is missing or unreadable, has another format, or does not fit the others.
        """
        folder = Path(folder)
        about = _read_about(folder / ABOUT)
        method = {"name": about["tokenizer"], **about["settings"]}
        tokenizer = build_tokenizer(method, str(folder / ABOUT), "settings")
        try:
            tokenizer.load(load_file(folder / WEIGHTS))
            table = pq.read_table(folder / ITEMS)
        except (OSError, SafetensorError, RuntimeError, KeyError, pa.ArrowException) as error:
            if (ordinary := resource_error(error, str(folder))) is not None:
                raise ordinary from None
            reason = " ".join(str(error).split())[:300]
            raise RunError(str(folder), reason, "the files that longrec tokenize writes", _AGAIN) from None
        levels, key = tokenizer.codebooks.shape[0], about["key"]
        names = [f"code_{level + 1}" for level in range(levels + 1)]
        if table.column_names != [key, *names, "version"]:
            raise RunError(
                str(folder / ITEMS), f"the columns {table.column_names}", f"{key}, {', '.join(names)}", _AGAIN
            )
        numbers = [table[name].to_numpy().astype(np.int32) for name in [*names, "version"]]
        codes = np.stack(numbers[:levels], 1)
        size = tokenizer.codebooks.shape[1]
        if len(codes) and not (codes.min() >= 0 and codes.max() < size):
            raise RunError(str(folder / ITEMS), f"codes up to {codes.max()}", f"codes from 0 to {size - 1}", _AGAIN)
        return cls(table[key].combine_chunks(), codes, tokenizer, numbers[levels], numbers[-1], about["facts"], key)


_AGAIN = "write the semantic IDs again with longrec tokenize"
_KEYS = ("tokenizer", "settings", "facts", "key")


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """Provide a path to write to, which replaces the file once it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(str(path), f"cannot be read ({reason})", "a folder of longrec tokenize", _AGAIN) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        own = about.get("format") if isinstance(about, dict) else about
        raise RunError(str(path), f"format {own!r}", f"format {FORMAT}", "open it with the version that wrote it")
    missing = [key for key in _KEYS if key not in about]
    if missing:
        raise RunError(str(path), f"no {', '.join(missing)}", "the keys that longrec tokenize writes", _AGAIN)
    return about


def _cast(items: pa.Array | Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return (items if isinstance(items, pa.Array) else pa.array(items)).cast(kind)
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError("new items", f"keys of another type ({reason})", f"keys of the type {kind}") from None
