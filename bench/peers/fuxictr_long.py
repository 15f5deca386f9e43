"""Runner of the long-history models of FuxiCTR (its ``model_zoo/LongCTR``), with their loader and ``fit``.

``--zoo`` is a checkout of https://github.com/reczoo/FuxiCTR, whose wheel has layers and ``fit``, but not these models.
The data have the form that their loader reads: rows of integers, histories by user and columns by item. It joins them
batch by batch, and cuts a batch at its longest history. Each row is a user of its own here, since the histories of the
log are independent.

Fixed differences: gradients are clipped at norm 10. The label enters the matrix of integers. With ``--workers 0``
loading runs in the training process, which its rate and memory favor; its configurations have 3 processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# The file beside this one has the name of the package, so its folder must not be on the path.
sys.path[0] = str(Path(__file__).resolve().parents[1])
import clock  # noqa: E402

SHARED = {
    "embedding_dim": 16,
    "attention_dim": 64,
    "num_heads": 2,
    "dnn_hidden_units": [64, 32],
    "learning_rate": 1e-3,
    "optimizer": "adam",
    "loss": "binary_crossentropy",
    "task": "binary_classification",
    "metrics": ["AUC"],
    "verbose": 0,
    "gpu": -1,
    "short_seq_len": 50,
}
MODELS = {
    "sim": {"topk": 50},
    "eta": {"topk": 50, "hash_bits": 32},
    "sdim": {"num_hashes": 2, "hash_bits": 4},
    "twin": {"topk": 50, "Kc_cross_features": 0},
}
"""What ``model_zoo/LongCTR/config`` sets for each model. Its embeddings are narrower (4; SDIM 32)."""


def prepare(options) -> None:
    """Write rows, histories and items, and the description of the features."""
    import numpy as np
    import polars as pl

    rows = pl.read_parquet(options.data / "train.parquet")
    counted = rows.select(
        pl.col("user_id", "hour").cast(pl.Int64),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("user_index"),
        pl.col("item_id").cast(pl.Int64).alias("item_index"),
        pl.col("hist_item").list.len().cast(pl.Int64).alias("seq_len"),
        pl.col("label").cast(pl.Int64),
    )
    counted.write_parquet(options.work / "train.parquet")
    rows.select(pl.col("hist_item").alias("full_item_seq")).write_parquet(options.work / "users.parquet")
    items = pl.read_parquet(options.data / "items.parquet").sort("item_id")
    assert np.array_equal(items["item_id"], np.arange(1, len(items) + 1)), "ids of items must be 1, 2, 3, ..."
    padding = pl.DataFrame({name: [0] for name in items.columns}, schema=items.schema)
    table = pl.concat([padding, items]).with_row_index("item_index").cast(pl.Int64)
    table.write_parquet(options.work / "items.parquet")

    sizes = {"user_id": ("user", "users"), "hour": ("context", "hours"), "item_id": ("item", "items"),
             "cate_id": ("item", "categories")}  # fmt: skip
    features: list[dict] = [{name: {"type": "meta"}} for name in ("user_index", "item_index", "seq_len")]
    for name, (source, size) in sizes.items():
        vocabulary = {"source": source, "type": "categorical", "vocab_size": options.meta[size] + 1}
        features.append({name: vocabulary | ({"padding_idx": 0} if source == "item" else {})})
    description = {"dataset_id": "log", "labels": ["label"], "features": features}
    (options.work / "feature_map.json").write_text(json.dumps(description))


def main() -> None:
    options = clock.parse_arguments()
    if options.prepare:
        if not (options.work / "feature_map.json").exists():
            prepare(options)
        return
    steps = clock.StepClock(options.steps, options.threads, children=True)
    import importlib
    import logging

    import numpy as np
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.torch_utils import seed_everything

    logging.disable(logging.WARNING)
    seed_everything(options.seed)
    sys.path.insert(1, str(options.zoo / "model_zoo" / "LongCTR"))
    np.unicode_ = np.str_  # Keras-Preprocessing, which the loader imports, reads the name that NumPy 2 removed

    from longctr_dataloader import LongCTRDataLoader

    name = options.model.upper()
    features = FeatureMap("log", str(options.work))
    features.load(str(options.work / "feature_map.json"), SHARED)
    model = getattr(importlib.import_module(name), name)(
        features, model_root=str(options.work), **SHARED, **MODELS[options.model]
    )
    batches = LongCTRDataLoader(
        features, str(options.work / "train.parquet"), str(options.work / "users.parquet"),
        str(options.work / "items.parquet"), batch_size=options.batch, shuffle=True, num_workers=options.workers,
        max_len=options.meta["cap"],
    )  # fmt: skip
    try:
        model.fit(batches, epochs=1)
    except clock.StepLimitReached:
        clock.emit(steps.result(options.batch, name="FuxiCTR"))


if __name__ == "__main__":
    main()
