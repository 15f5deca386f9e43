"""Tables of the example: a small shop, or the files of Amazon Beauty.

    python prepare.py                  # a shop of 1,200 items with random buyers
    python prepare.py --data FOLDER    # items.parquet, interactions.parquet and item_embedding.parquet

Writes log.parquet, items.parquet and arrivals.parquet. Arrivals are items that come later: neither the log nor the
tokenizer has seen them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = {
    "Makeup": ("lipstick", "mascara", "eyeliner", "powder", "blush"),
    "Skin": ("cleanser", "serum", "moisturizer", "sunscreen", "mask"),
    "Hair": ("shampoo", "conditioner", "hairspray", "brush", "colorant"),
    "Nails": ("polish", "remover", "file", "sticker", "topcoat"),
    "Fragrance": ("perfume", "cologne", "candle", "mist", "oil"),
}
STYLES = ("matte", "glossy", "organic", "sensitive", "luxury", "travel", "vegan", "vintage")
BRANDS = ("Aurora", "Birch", "Cobalt", "Dune", "Ember", "Fjord", "Grove", "Haze", "Iris", "Juniper")
START, DAY = 1_700_000_000, 86_400
WIDTH = 32
"""Width of the vectors of the shop."""
TABLES = """
CREATE TABLE every AS
    SELECT item_id, text, category_l1, category, vectors.embedding
    FROM '{data}/items.parquet' AS items JOIN '{data}/item_embedding.parquet' AS vectors USING (item_id);
CREATE TABLE events AS SELECT user_id, item_id, timestamp FROM '{data}/interactions.parquet'
    WHERE timestamp IS NOT NULL;
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of Amazon Beauty; default: a small shop")
    parser.add_argument("--users", type=int, default=1_000, help="buyers of the shop")
    parser.add_argument("--items", type=int, default=1_200, help="items of the shop")
    parser.add_argument("--arrivals", type=float, default=0.05, help="share of the items that come later")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    with duckdb.connect() as con:
        if options.data is None:
            items, log = make_shop(options.users, options.items, random)
            con.register("made_items", items)
            con.register("made_log", log)
            con.execute("CREATE TABLE every AS FROM made_items; CREATE TABLE events AS FROM made_log")
        else:
            con.execute(TABLES.format(data=options.data))
        write_tables(con, options.arrivals, random)


def write_tables(con: duckdb.DuckDBPyConnection, arrivals: float, random: np.random.Generator) -> None:
    """Write the tables, with the last tenths of the time as valid and test."""
    keys = con.execute("SELECT item_id FROM every ORDER BY item_id").fetchnumpy()["item_id"]
    late = random.choice(keys, round(arrivals * len(keys)), replace=False)
    con.register("late", pa.table({"item_id": np.sort(late)}))
    con.execute(
        """
        CREATE TABLE log AS SELECT *, CASE
                WHEN timestamp >= (SELECT quantile_disc(timestamp, 0.9) FROM events) THEN 'test'
                WHEN timestamp >= (SELECT quantile_disc(timestamp, 0.8) FROM events) THEN 'valid'
                ELSE 'train' END AS split
            FROM events ANTI JOIN late USING (item_id);
        CREATE TABLE counts AS SELECT item_id, count(*) AS train_events FROM log WHERE split = 'train' GROUP BY ALL;
        CREATE VIEW counted AS SELECT every.*, coalesce(train_events, 0) AS train_events
            FROM every LEFT JOIN counts USING (item_id);
        COPY (FROM log ORDER BY user_id, timestamp, item_id) TO 'log.parquet';
        COPY (FROM counted ANTI JOIN late USING (item_id) ORDER BY item_id) TO 'items.parquet';
        COPY (FROM counted SEMI JOIN late USING (item_id) ORDER BY item_id) TO 'arrivals.parquet';
        """
    )
    for name in ("log", "items", "arrivals"):
        print(f"{name}.parquet: {pq.read_metadata(f'{name}.parquet').num_rows:,} rows")


def make_shop(users: int, count: int, random: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Return items with text and vectors, and what buyers took.

    An item has a kind, a style and a brand. A buyer likes two styles, stays with one kind for a while, and then goes on
    to another one of the same category. The vector of an item is the sum of the vectors of its words.
    """
    kinds = [(category, kind) for category, own in KINDS.items() for kind in own]
    kind, style, brand = (random.integers(0, size, count) for size in (len(kinds), len(STYLES), len(BRANDS)))
    number = np.arange(count)
    texts = [
        f"{STYLES[s]} {kinds[k][1]} no {n}. {BRANDS[b]}. {kinds[k][0]} > {kinds[k][1]}"
        for k, s, b, n in zip(kind, style, brand, number)
    ]
    books = [random.normal(size=(size, WIDTH)) for size in (len(KINDS), len(kinds), len(STYLES), len(BRANDS))]
    vectors = books[0][kind // 5] + books[1][kind] + 0.7 * books[2][style] + 0.3 * books[3][brand]
    vectors += 0.3 * random.normal(size=vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    items = {
        "item_id": number,
        "text": texts,
        "category_l1": [kinds[k][0] for k in kind],
        "category": [kinds[k][1] for k in kind],
        "embedding": pa.array(list(vectors)),
    }
    rows: list[tuple[int, int, int]] = []
    for user in range(users):
        likes, current = random.choice(len(STYLES), 2, replace=False), int(random.integers(0, len(kinds)))
        at = START + int(random.integers(0, 300 * DAY))
        for _ in range(int(random.integers(5, 16))):
            if random.random() < 0.3:
                current = current // 5 * 5 + int(random.integers(0, 5))
            weight = np.where(kind == current, 50.0, 1.0) * np.where(np.isin(style, likes), 20.0, 1.0)
            rows.append((user, int(random.choice(count, p=weight / weight.sum())), at))
            at += int(random.integers(DAY // 24, 20 * DAY))
    return pa.table(items), pa.table(dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows)))))


if __name__ == "__main__":
    main()
