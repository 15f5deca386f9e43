"""Codes of items for the generators of ``next_item.py``: tokenizers of this package, and published codes.

Vectors are those of ``item_embedding.parquet``: TF-IDF and SVD of the text of an item. Tokenizers that read events read
those of training alone: all but the last two of each user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import longrec

ATTRIBUTE = "category"
SIZES = {"levels": 3, "size": 256}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "rq_kmeans": {"method": {"name": "rq_kmeans", **SIZES}},
    "rq_vae": {"method": {"name": "rq_vae", **SIZES}},
    "rqp_vae": {"method": {"name": "rq_vae", "ema": True, "revive": True, **SIZES}},
    "drq": {"method": {"name": "drq", **SIZES}},
    "drq_contrast": {"method": {"name": "drq", "contrast": 0.3, **SIZES}},
    "capacity": {"method": {"name": "rq_kmeans", **SIZES}, "capacity": {"weights": "events"}},
}
PUBLISHED = {"published_rq_vae": "sid_rqvae", "published_rq_kmeans": "sid_rqkmeans"}
CODES = (*PUBLISHED, *TOKENIZERS)
"""Names of all codes."""


def write_items(codes: str, log: str, data: Path, work: Path) -> tuple[Path, list[str]]:
    """Write the item table of a log with codes, once.

    Returns:
        The table, and the names of its columns of codes.
    """
    path = work / f"items-{log}-{codes}.parquet"
    if not path.exists():
        source = data / f"amazon_{log}"
        items = pq.read_table(source / "items.parquet", columns=["item_id", "category_l1", ATTRIBUTE])
        shuffled = np.random.default_rng(0).permutation(len(items))
        items = items.append_column("random_category", items[ATTRIBUTE].take(pa.array(shuffled)))
        own = _read_published(codes, source) if codes in PUBLISHED else _tokenize(codes, log, source, work)
        own = own.set_column(0, "item_id", own["item_id"].cast(items.schema.field("item_id").type))
        pq.write_table(items.join(own, "item_id").sort_by("item_id"), path)
    return path, [name for name in pq.read_schema(path).names if name.startswith("code_")]


def _read_published(codes: str, source: Path) -> pa.Table:
    table = pq.read_table(source / "item_codes.parquet", columns=["item_id", PUBLISHED[codes]])
    numbers = np.stack(table[PUBLISHED[codes]].to_pylist()).astype(np.int32)
    columns = {f"code_{level + 1}": np.ascontiguousarray(numbers[:, level]) for level in range(numbers.shape[1])}
    return pa.table({"item_id": table["item_id"], **columns})


def _tokenize(codes: str, log: str, source: Path, work: Path) -> pa.Table:
    folder = work / f"tokens-{log}-{codes}"
    if not (folder / "items.parquet").exists():
        config = {
            "vectors": {"items": str(source / "item_embedding.parquet"), "item": "item_id", "column": "embedding"},
            **TOKENIZERS[codes],
        }
        if codes in ("capacity", "drq_contrast"):
            config["events"] = {
                "log": str(_write_training(log, source, work)),
                "time": {"column": "position", "unit": "step"},
                "until": 1_000_000,
            }
        longrec.tokenize(config, into=folder, quiet=True)
    return pq.read_table(folder / "items.parquet").drop_columns(["version"])


def _write_training(log: str, source: Path, work: Path) -> Path:
    """Write the events of training: all but the last two of each user."""
    path = work / f"training-{log}.parquet"
    table = pq.read_table(source / "interactions.parquet", columns=["user_id", "item_id", "position"])
    user, position = table["user_id"].to_numpy(), table["position"].to_numpy()
    last = np.zeros(user.max() + 1, np.int64)
    np.maximum.at(last, user, position)
    pq.write_table(table.filter(pa.array(position < last[user] - 1)), path)
    return path
