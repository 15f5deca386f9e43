"""Benchmark of reading and preparing a million rows in the form of EasyRec's DIN sample: time, memory, size.

    python bench/easyrec_rows.py [--rows 1000000 --threads 2]

The rows are text without a header: 20 columns, two of them lists of up to 50 ids written ``a|b|c``, and a second form
with both lists in one packed cell, ``brand:7#cate_id:3;brand:9#...``. Each form is *read* (checked against the declared
types and written as typed columns, the first step of preparation) and *prepared* (all of ``longrec prepare``) in a
process of its own. Peak memory is the resident peak of that process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from longrec.data.prepare import prepare
from longrec.data.relation import Relation, connect
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema

IDS = {
    "pid": 2, "adgroup_id": 800_000, "cate_id": 10_000, "campaign_id": 400_000, "customer": 200_000, "brand": 100_000,
    "user_id": 200_000, "cms_segid": 97, "cms_group_id": 13, "final_gender_code": 3, "age_level": 7, "pvalue_level": 4,
    "shopping_level": 4, "occupation": 2, "new_user_class_level": 5,
}  # fmt: skip
"""Columns of ids -> number of distinct ids. A few ids make up most rows, as in real logs."""
LISTS = {"tag_category_list": "cate_id", "tag_brand_list": "brand"}
TYPES = {"clk": "int", "buy": "int", **dict.fromkeys(IDS, "text")}
CHUNK = 100_000


def draw_ids(rng: np.random.Generator, ids: int, count: int) -> pa.Array:
    """Draw ids as text, with a frequency of about the inverse of the rank."""
    drawn = np.exp(rng.random(count) * np.log(ids + 1)).astype(np.int64)
    # Scattered, so that the frequent ids are not the short ones.
    return pa.array(drawn * 7_919 % ids).cast(pa.string())


def draw_lists(rng: np.random.Generator, form: str) -> dict[str, pa.Array]:
    """Draw the lists of a chunk of rows, with 0 to 50 values each."""
    lengths = rng.integers(0, 51, CHUNK)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = {of: draw_ids(rng, IDS[of], int(lengths.sum())) for of in LISTS.values()}
    if form == "lists":
        return {
            column: pc.binary_join(pa.ListArray.from_arrays(offsets, flat[of]), "|") for column, of in LISTS.items()
        }
    steps = pc.binary_join_element_wise("brand:", flat["brand"], "#cate_id:", flat["cate_id"], "")
    return {"seq": pc.binary_join(pa.ListArray.from_arrays(offsets, steps), ";")}


def generate_tables(rows: int, form: str, seed: int) -> Iterator[pa.Table]:
    """Generate the rows, chunk by chunk."""
    rng = np.random.default_rng(seed)
    for _ in range(0, rows, CHUNK):
        columns: dict[str, Any] = {"clk": (rng.random(CHUNK) < 0.05).astype(int), "buy": np.zeros(CHUNK, int)}
        columns |= {name: draw_ids(rng, ids, CHUNK) for name, ids in IDS.items()}
        yield pa.table({**columns, **draw_lists(rng, form), "price": rng.integers(0, 50, CHUNK)})


def write(path: Path, rows: int, form: str, seed: int) -> None:
    """Write the rows as text without a header."""
    half = path.with_suffix(".half")
    with half.open("wb") as file:
        for table in generate_tables(rows, form, seed):
            pacsv.write_csv(table, file, pacsv.WriteOptions(include_header=False, quoting_style="none"))
    half.rename(path)


def build_settings(files: dict[str, str], form: str, folder: str, threads: int) -> tuple[DataConfig, Schema]:
    """Return the data section and the schema: hashed ids, the price in buckets, two histories."""
    features: dict[str, Any] = {name: {"kind": "id", "hash": min(ids, 100_000)} for name, ids in IDS.items()}
    features["price"] = {"kind": "bucketized", "edges": [5, 10, 15, 20, 25, 30, 35, 40, 45]}
    rows: dict[str, Any] = {"columns": {**TYPES, **dict.fromkeys(LISTS, "text"), "price": "int"}}
    histories: dict[str, Any] = {
        of: {"features": [of], "columns": {of: column}, "separator": "|", "max_length": 50}
        for column, of in LISTS.items()
    }
    if form == "packed":
        into = {of: f"seq__{of}" for of in LISTS.values()}
        rows = {"columns": {**TYPES, "seq": "text", "price": "int"}, "packed": {"seq": {"into": into}}}
        histories = {"seq": {"features": [*into], "columns": into, "max_length": 50}}
    schema = {"user": "user_id", "item": "adgroup_id", "label": "clk", "features": features, "histories": histories}
    data = {"log": {"splits": files, "rows": rows}, "split": {"by": "files"}, "folder": folder, "threads": threads}
    return DataConfig.model_validate(data), Schema.model_validate(schema)


def run_job(what: str, files: dict[str, str], form: str, threads: int) -> None:
    """Run the job of one process."""
    with tempfile.TemporaryDirectory(dir=machine.CACHE) as folder:
        config, schema = build_settings(files, form, folder, threads)
        if what == "prepare":
            prepare(config, schema)
            return
        con = connect(config, Path(folder))
        Relation(con, "log", config.log, Path(folder))
        con.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 1_000_000), ("threads", 2), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        run_job(**json.loads(args.work), threads=args.threads)
        return
    machine.CACHE.mkdir(parents=True, exist_ok=True)
    rows = []
    for form in ("lists", "packed"):
        files = {}
        for split, count, seed in (
            ("train", args.rows * 4 // 5, args.seed),
            ("test", args.rows // 5, args.seed + 1),
        ):
            path = machine.CACHE / f"easyrec_{form}_{split}_{count}_{seed}.csv"
            if not path.exists():
                write(path, count, form, seed)
            files[split] = str(path)
        size = sum(Path(path).stat().st_size for path in files.values())
        for what in ("read", "prepare"):
            job = json.dumps({"what": what, "files": files, "form": form})
            used = machine.measure([sys.executable, __file__, "--threads", str(args.threads), "--work", job])
            rows.append([
                form, what, f"{size / 1e6:,.0f}", f"{used.wall:.1f}", f"{used.cpu:.1f}", f"{used.peak_mb / 1000:.2f}",
                machine.read_load(),
            ])  # fmt: skip
            print(f"{form}, {what}: {used.wall:.1f} s, CPU {used.cpu:.1f} s, {used.peak_mb:.0f} MB", flush=True)
    head = ["form", "", "text, MB", "wall, s", "CPU, s", "peak memory, GB", "load"]
    machine.write(
        "easyrec_rows",
        f"# {args.rows:,} rows of 20 columns in the form of EasyRec's DIN sample\n\n"
        f"Text without a header, four fifths of it train; {args.threads} threads; start of Python and imports "
        "included. *Read* checks every row against the declared types and writes typed columns; *prepare* is "
        "`longrec prepare` in all: read, sort, fit, encode. A load above the number of cores makes wall times "
        f"pessimistic.\n\n{machine.format_table(head, rows)}",
    )


if __name__ == "__main__":
    main()
