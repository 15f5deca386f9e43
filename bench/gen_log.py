"""A synthetic click log with pre-joined histories, for timing trainers side by side.

The dataset: items have a Zipf popularity and a category, a category has a direction in a small space, a user has four
favorite categories. An item of the history comes from a favorite category (70 %) or from the whole catalog. Lengths of
histories are log-normal, cut at ``--cap``. The click depends on popularity, category and hour (no history needed), the
user's own direction, the frequency of the candidate's category in the history, and the items of the history most
similar to the candidate (which target attention can learn).

    python bench/gen_log.py --out FOLDER [--items 200000 --cap 100 --users 100000 --train 200000 --test 50000]

Writes ``train.parquet`` and ``test.parquet`` (user_id, item_id, cate_id, hour, hist_item, hist_cate, label, part; ids
from 1, 0 is free for padding; histories oldest first), ``items.parquet`` (the catalog: item_id, cate_id) and
``meta.json`` (sizes, click rate, lengths, and ``ceiling_auc``: the AUC of the true click probability on the test rows).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FAVORITES = 4
WIDTH = 8


@dataclass
class SyntheticLog:
    """Catalog and users. The index of an item is its popularity rank, 0 the most popular."""

    category: np.ndarray  # [items]
    vector: np.ndarray  # [items, WIDTH]
    bias: np.ndarray  # [categories]
    by_category: np.ndarray  # [items] ranks, grouped by category, popular first
    start: np.ndarray  # [categories + 1] into by_category
    cumulative: np.ndarray  # [items] Zipf distribution function
    favorites: np.ndarray  # [users, FAVORITES]
    taste: np.ndarray  # [users, WIDTH]

    @classmethod
    def make(cls, items: int, users: int, categories: int, zipf: float, rng: np.random.Generator) -> SyntheticLog:
        center = rng.normal(size=(categories, WIDTH)).astype(np.float32)
        center /= np.linalg.norm(center, axis=1, keepdims=True)
        category = rng.integers(0, categories, items)
        weight = np.arange(1, items + 1, dtype=np.float64) ** -zipf
        favorites = rng.integers(0, categories, (users, FAVORITES))
        return cls(
            category=category,
            vector=center[category] + rng.normal(size=(items, WIDTH)).astype(np.float32) * 0.15,
            bias=(rng.normal(size=categories) * 0.8).astype(np.float32),
            by_category=np.argsort(category, kind="stable"),
            start=np.concatenate([[0], np.cumsum(np.bincount(category, minlength=categories))]),
            cumulative=np.cumsum(weight / weight.sum()),
            favorites=favorites,
            taste=2 * center[favorites].mean(axis=1) + rng.normal(size=(users, WIDTH)).astype(np.float32) * 0.25,
        )

    def draw(self, user: np.ndarray, loyal: float, rng: np.random.Generator) -> np.ndarray:
        """Draw one item per entry of ``user``, from a favorite category with probability ``loyal``."""
        item = np.minimum(np.searchsorted(self.cumulative, rng.random(len(user))), len(self.category) - 1)
        at = np.flatnonzero(rng.random(len(user)) < loyal)
        chosen = self.favorites[user[at], rng.integers(0, FAVORITES, len(at))]
        size = self.start[chosen + 1] - self.start[chosen]
        at, chosen, size = at[size > 0], chosen[size > 0], size[size > 0]
        # size ** u is log-uniform: inside a category popularity falls as 1 / rank
        rank = np.minimum(size ** rng.random(len(at)) - 1, size - 1).astype(np.int64)
        item[at] = self.by_category[self.start[chosen] + rank]
        return item

    def logit(
        self, user: np.ndarray, item: np.ndarray, hour: np.ndarray, history: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        """Return the true click logit of every row, before centering."""
        owner = np.repeat(np.arange(len(user)), np.diff(offsets))
        like = np.einsum("nd,nd->n", self.vector[history], self.vector[item[owner]])
        same = (self.category[history] == self.category[item[owner]]).astype(np.float32)
        starts = offsets[:-1]  # every history holds at least one item, so reduceat has no empty segment
        nearest = np.maximum.reduceat(like, starts)
        mean = np.add.reduceat(like, starts) / np.diff(offsets)
        return (
            0.5 * np.einsum("nd,nd->n", self.taste[user], self.vector[item])
            + 0.6 * nearest
            + 0.4 * mean
            + 1.6 * np.tanh(np.add.reduceat(same, starts) / 3)
            + self.bias[self.category[item]]
            + 0.12 * (np.log(len(self.category)) / 2 - np.log1p(item))
            + 0.3 * np.sin(hour / 12 * np.pi)
        )


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve of distinct scores."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return float((rank[label > 0].sum() - positive * (positive + 1) / 2) / (positive * (len(label) - positive)))


def generate(out: Path, items: int, users: int, categories: int, train: int, test: int, cap: int, mean: float,
             spread: float, zipf: float, seed: int) -> dict[str, object]:  # fmt: skip
    """Write the log, and return the content of meta.json."""
    rng = np.random.default_rng(seed)
    dataset = SyntheticLog.make(items, users, categories, zipf, rng)
    rows = train + test
    user = rng.integers(0, users, rows)
    length = np.clip(np.round(rng.lognormal(np.log(mean) - spread**2 / 2, spread, rows)), 1, cap).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(length)])
    history = dataset.draw(np.repeat(user, length), 0.7, rng)
    item = dataset.draw(user, 0.5, rng)
    hour = rng.integers(1, 25, rows)
    logit = np.empty(rows)
    for low in range(0, rows, 20_000):  # in chunks, as the vectors of all history items would need gigabytes
        high = min(rows, low + 20_000)
        inside = slice(offsets[low], offsets[high])
        logit[low:high] = dataset.logit(
            user[low:high], item[low:high], hour[low:high], history[inside], offsets[low : high + 1] - offsets[low]
        )
    logit = 1.2 * (logit - logit.mean()) - 1.4
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)

    out.mkdir(parents=True, exist_ok=True)
    name = (rng.permutation(items) + 1).astype(np.int32)  # ids carry no popularity
    cate = (dataset.category + 1).astype(np.int32)
    order = np.argsort(name)
    pq.write_table(pa.table({"item_id": name[order], "cate_id": cate[order]}), out / "items.parquet")
    for split, low, high in (("train", 0, train), ("test", train, rows)):
        bounds = pa.array((offsets[low : high + 1] - offsets[low]).astype(np.int32))
        seen = history[offsets[low] : offsets[high]]
        table = pa.table({
            "user_id": (user[low:high] + 1).astype(np.int32),
            "item_id": name[item[low:high]],
            "cate_id": cate[item[low:high]],
            "hour": hour[low:high].astype(np.int32),
            "hist_item": pa.ListArray.from_arrays(bounds, pa.array(name[seen])),
            "hist_cate": pa.ListArray.from_arrays(bounds, pa.array(cate[seen])),
            "label": label[low:high],
            # half of the test rows may choose a checkpoint; metrics are of both halves
            "part": pa.array(["train"] * train if split == "train" else ["valid", "test"] * (test // 2)),
        })  # fmt: skip
        pq.write_table(table, out / f"{split}.parquet", row_group_size=50_000)
    meta: dict[str, object] = {
        "users": users, "items": items, "categories": categories, "hours": 24, "cap": cap, "train": train, "test": test,
        "seed": seed, "click_rate": float(label.mean()), "mean_length": float(length.mean()),
        "median_length": float(np.median(length)), "mean_length_at_50": float(np.minimum(length, 50).mean()),
        "distinct_items": len(np.unique(np.concatenate([history, item]))),
        "ceiling_auc": auc(label[train:], logit[train:]),
    }  # fmt: skip
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("items", 200_000), ("users", 100_000), ("categories", 1_000), ("train", 200_000),
                        ("test", 50_000), ("cap", 100), ("seed", 1)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, real in (("mean", 30.0), ("spread", 0.9), ("zipf", 1.05)):
        parser.add_argument(f"--{name}", type=float, default=real)
    print(json.dumps(generate(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
