"""Codes of items for the generators of ``next_item.py``: tokenizers of this package, and published codes.

Vectors are those of ``item_embedding.parquet``, TF-IDF and SVD of the text of an item, unless the name says otherwise:

    rq_kmeans_behavior  item vectors of the finished run of SASRec on the same log
    rq_kmeans_both      both, each of length 1, one after the other

Tokenizers that read events read those of training alone: all but the last two of each user, or the newest event and
the target of each published row of training. SASRec reads those of training alone too. Of a task with held-out items
(``next_item_logs.py``), a tokenizer is fitted without them, and encodes them afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import next_item_logs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import longrec
from longrec.semantic_ids.collisions import index_twins
from longrec.semantic_ids.settings import VectorsConfig
from longrec.semantic_ids.vectors import read_vectors

LEVEL_1, ATTRIBUTE, RANDOM = "category_l1", "category", "random_category"
SIZES = {"levels": 3, "size": 256}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"method": {"name": "rq_kmeans", **SIZES}},
    "rq_vae": {"method": {"name": "rq_vae", **SIZES}},
    "rqp_vae": {"method": {"name": "rq_vae", "ema": True, "revive": True, **SIZES}},
    "drq": {"method": {"name": "drq", **SIZES}},
    "drq_contrast": {"method": {"name": "drq", "contrast": 0.3, **SIZES}},
    "capacity": {"method": {"name": "rq_kmeans", **SIZES}, "capacity": {"weights": "events"}},
    "rq_kmeans_behavior": {"method": {"name": "rq_kmeans", **SIZES}},
    "rq_kmeans_both": {"method": {"name": "rq_kmeans", **SIZES}},
}
BEHAVIOR = ("rq_kmeans_behavior", "rq_kmeans_both")
"""Codes that need the item vectors of a run. A held-out item has none."""
READ_EVENTS = ("capacity", "drq_contrast")
"""Codes of tokenizers that read events."""
BEHAVIOR_RUN = "softmax-0"
"""Arm and seed of that run, under N1."""
PUBLISHED: dict[str, dict[str, str]] = {
    "beauty": {"published_rq_vae": "sid_rqvae", "published_rq_kmeans": "sid_rqkmeans"},
    "office": {"published": "sid"},
}
"""Published codes by log: their names, and their columns. Those of Office have no code that tells twins apart."""
ABLATED = "published_rq_vae"
"""Codes of the arms that leave something out. The full model is the arm of these codes."""
CODES = (*(codes for published in PUBLISHED.values() for codes in published), *TOKENIZERS)
"""Names of all codes."""


def list_codes(name: str) -> tuple[str, ...]:
    """Return the codes that the items of a task can have.

    A log without vectors of items has none. Codes from events are those of leave one out, whose training goes beyond
    the end of that of N4.
    """
    log, _, protocol = name.partition("_")
    if log not in PUBLISHED:
        return ()
    left_out: tuple[str, ...] = BEHAVIOR if log != "beauty" or protocol == next_item_logs.HELD else ()
    if protocol == "n4":
        left_out = (*BEHAVIOR, *READ_EVENTS)
    return (*PUBLISHED[log], *(codes for codes in TOKENIZERS if codes not in left_out))


def write_items(codes: str, name: str, data: Path, work: Path) -> tuple[Path, list[str]]:
    """Write the item table of a task with codes, once.

    Returns:
        The table, and the names of its columns of codes.
    """
    log, held = _read_name(name)
    path = work / f"items-{log}{held}-{codes}.parquet"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        source = next_item_logs.find_source(log, data)
        there = pq.read_schema(source / "items.parquet").names
        columns = ["item_id", *(column for column in (LEVEL_1, ATTRIBUTE) if column in there)]
        items = pq.read_table(source / "items.parquet", columns=columns)
        if ATTRIBUTE in columns:
            shuffled = np.random.default_rng(0).permutation(len(items))
            items = items.append_column(RANDOM, items[ATTRIBUTE].take(pa.array(shuffled)))
        published = PUBLISHED.get(log, {})
        own = _read_published(published[codes], source) if codes in published else _tokenize(codes, name, data, work)
        own = own.set_column(0, "item_id", own["item_id"].cast(items.schema.field("item_id").type))
        pq.write_table(items.join(own, "item_id").sort_by("item_id"), path)
    return path, [name for name in pq.read_schema(path).names if name.startswith("code_")]


def find_folder(codes: str, name: str, work: Path) -> Path:
    """Return the folder of the tokenizer of a task. It need not exist."""
    log, held = _read_name(name)
    return work / f"tokens-{log}{held}-{codes}"


def _read_name(name: str) -> tuple[str, str]:
    """Return the log of a task, and ``_held`` if items are held out."""
    log, _, protocol = name.partition("_")
    return log, f"_{next_item_logs.HELD}" if protocol == next_item_logs.HELD else ""


def _read_published(column: str, source: Path) -> pa.Table:
    """Return item_id and the codes, with a last one that tells twins apart."""
    there = "item_codes.parquet" if (source / "item_codes.parquet").exists() else "items.parquet"
    table = pq.read_table(source / there, columns=["item_id", column])
    numbers = np.stack(table[column].to_pylist()).astype(np.int32)
    if len(np.unique(numbers, axis=0)) < len(numbers):
        numbers = np.column_stack([numbers, index_twins(numbers)])
    columns = {f"code_{level + 1}": np.ascontiguousarray(numbers[:, level]) for level in range(numbers.shape[1])}
    return pa.table({"item_id": table["item_id"], **columns})


def describe(codes: str, name: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the settings of ``longrec tokenize`` for the codes of a task."""
    source, behavior = next_item_logs.find_source(_read_name(name)[0], data), codes in BEHAVIOR
    run = work / "runs" / f"{_read_name(name)[0]}_n1-{BEHAVIOR_RUN}"
    if behavior and (_read_name(name)[1] or not (run / "results.json").exists()):
        raise SystemExit(f"{codes} of {name}: needs the run {run.name} and no held-out items")
    vectors: dict[str, Any] = {"item": "item_id", "column": "embedding"}
    if codes == "rq_kmeans_behavior":
        vectors = {"run": str(run)}
    elif codes == "rq_kmeans_both":
        vectors["items"] = str(_join_vectors(source, run, work / f"vectors-{_read_name(name)[0]}-both.parquet"))
    else:
        vectors["items"] = str(source / "item_embedding.parquet")
    config = {"vectors": vectors, **TOKENIZERS[codes]}
    if codes in READ_EVENTS:
        config["events"] = {
            "log": str(write_training(name, data, work)),
            "time": {"column": "position", "unit": "step"},
            "until": 1_000_000,
        }
    return config


def _tokenize(codes: str, name: str, data: Path, work: Path) -> pa.Table:
    folder = find_folder(codes, name, work)
    if not (folder / "items.parquet").exists():
        config = describe(codes, name, data, work)
        held_out = next_item_logs.list_held_out(name, data)
        if not len(held_out):
            longrec.tokenize(config, into=folder, quiet=True)
        else:
            every = config["vectors"]["items"]
            some = {"query": f"SELECT * FROM '{every}' WHERE item_id NOT IN ({', '.join(map(str, held_out))})"}
            longrec.tokenize({**config, "vectors": {**config["vectors"], "items": some}}, into=folder, quiet=True)
            longrec.tokenize(config, append=folder, quiet=True)
    return pq.read_table(folder / "items.parquet").drop_columns(["version"])


def _join_vectors(source: Path, run: Path, path: Path) -> Path:
    """Write the vectors of the text and those of a run, each of length 1, as one vector per item."""
    if not path.exists():
        text = read_vectors(VectorsConfig(items=source / "item_embedding.parquet", column="embedding"))
        own = read_vectors(VectorsConfig(run=str(run)))
        at = np.argsort(own.items.to_numpy())[np.argsort(np.argsort(text.items.to_numpy()))]
        assert (own.items.to_numpy()[at] == text.items.to_numpy()).all(), "the run and the text have other items"
        both = [torch.nn.functional.normalize(x, dim=1) for x in (text.vectors, own.vectors[torch.from_numpy(at)])]
        pq.write_table(pa.table({"item_id": text.items, "embedding": list(torch.cat(both, 1).numpy())}), path)
    return path


def write_training(name: str, data: Path, work: Path) -> Path:
    """Write the events of training: all but the last two of each user, or the last two of each published row."""
    log, held = _read_name(name)
    path, rows = work / f"training-{log}{held}.parquet", next_item_logs.find_source(log, data) / "sequences.parquet"
    if rows.exists():
        query = f"""
            SELECT row_number() OVER () AS user_id, [hist_item_id[-1], item_id] AS items, [0, 1] AS positions
            FROM '{rows}' WHERE split = 'train'
        """
        events = f"SELECT user_id, unnest(items) AS item_id, unnest(positions) AS position FROM ({query})"
        duckdb.sql(events).write_parquet(str(path))
        return path
    table = next_item_logs.read_events(name, data).select(["user_id", "item_id", "position"])
    table = table.sort_by([("user_id", "ascending"), ("position", "ascending")])
    user = table["user_id"].to_numpy()
    after = np.searchsorted(user, user, side="right") - np.arange(len(user)) - 1
    pq.write_table(table.filter(pa.array(after >= 2)), path)
    return path
