"""Runner of DeepCTR-Torch's DIEN and its ``fit``: AUGRU, no auxiliary loss, histories padded to the cap.

Fixed differences: the hidden size equals the width of an event (32). The top network has no product of the candidate
and the pooled history. The evolution returns a packed sequence, its form of ragged rows. Its L2 on tables is set to 0,
as it would touch every row twice in every step. ``requests`` is installed by hand (undeclared).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
import clock  # noqa: E402

WIDTH = 16


def read_split(options, split: str):
    """Read columns in the form of its ``fit``: histories padded at the end, with their lengths."""
    import numpy as np
    import pyarrow.parquet as pq

    table, cap = pq.read_table(options.data / f"{split}.parquet"), options.meta["cap"]
    columns = {name: table[name].to_numpy() for name in ("user_id", "item_id", "cate_id", "hour")}
    for name, own in (("hist_item_id", "hist_item"), ("hist_cate_id", "hist_cate")):
        lists = table[own].combine_chunks()
        lengths = np.diff(lists.offsets.to_numpy())
        padded = np.zeros((len(table), cap), np.int64)
        padded[np.arange(cap) < lengths[:, None]] = lists.flatten().to_numpy()
        columns[name], columns["seq_length"] = padded, lengths
    return columns, table["label"].to_numpy()


def main() -> None:
    options = clock.parse_arguments()
    if options.prepare:
        return
    steps = clock.StepClock(options.steps, options.threads)
    import torch
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models.dien import DIEN

    meta, cap = options.meta, options.meta["cap"]
    sizes = {"user_id": meta["users"] + 1, "hour": 25, "item_id": meta["items"] + 1, "cate_id": meta["categories"] + 1}
    columns = [SparseFeat(name, size, WIDTH) for name, size in sizes.items()]
    for name in ("item_id", "cate_id"):
        own = SparseFeat(f"hist_{name}", sizes[name], WIDTH, embedding_name=name)
        columns.append(VarLenSparseFeat(own, cap, length_name="seq_length"))
    model = DIEN(
        columns, ["item_id", "cate_id"], gru_type="AUGRU", dnn_hidden_units=(200, 80), att_hidden_units=(64, 16),
        l2_reg_embedding=0.0, seed=options.seed,
    )  # fmt: skip
    model.compile(torch.optim.Adam(model.parameters(), lr=1e-3), "binary_crossentropy", metrics=[])
    x, y = read_split(options, "train")
    try:
        model.fit(x, y, batch_size=options.batch, epochs=1, verbose=0, shuffle=True)
    except clock.StepLimitReached:
        clock.emit(steps.result(options.batch, name="DeepCTR-Torch"))
        return
    result = steps.result(options.batch, name="DeepCTR-Torch")
    x, y = read_split(options, "test")
    clock.emit({**result, "auc": clock.auc(y, model.predict(x, options.batch))})


if __name__ == "__main__":
    main()
