"""``longrec tokenize``: sources of vectors, weights and pairs of a training window, faults, and appended items."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import longrec
from longrec.cli import main
from longrec.data.catalog import build_catalog
from longrec.data.synthetic import generate_dataset, write
from longrec.errors import ConfigError, DataError, ResourceError, RunError
from longrec.semantic_ids import text_encoder
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.item_events import read_item_events
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.settings import EventsConfig
from longrec.semantic_ids.stored import SemanticIds

DAY = 86_400
START = 1_735_689_600
TITLES = ("red shoe", "blue shoe", "green tea", "black tea", "gold ring", "silver ring", "oak table", "pine table")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with items, their vectors, a log of four days, and a config."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(120, 6)).astype(np.float32)
    titles = [f"{random.choice(TITLES)} {random.choice(TITLES)}" for _ in range(120)]
    keys = [f"i{row}" for row in range(120)]
    clicks = random.integers(0, 30, 120)
    columns = {"item_id": keys, "vector": list(vectors), "title": titles, "clicks": clicks}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    item = random.integers(0, 120, 800)
    item[400:] = 5  # the last two days are of one item
    log = {
        "user_id": random.integers(0, 40, 800),
        "item_id": [keys[row] for row in item],
        "time": START + np.arange(800) * DAY // 200,
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    (tmp_path / "tokens.yaml").write_text(
        "vectors: {items: items.parquet, column: vector}\nmethod: {name: rq_kmeans, levels: 2, size: 8}\n"
    )
    return tmp_path


EVENTS = {"log": "log.parquet", "time": "time", "until": "2025-01-03"}


def change_items(shop: Path, change: Callable[[dict[str, Any]], None]) -> None:
    columns = pq.read_table(shop / "items.parquet").to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), shop / "items.parquet")


def run(shop: Path, into: str = "ids", **sections: Any) -> SemanticIds:
    """Tokenize with the config of the shop and other sections."""
    base: Mapping[str, Any] = {
        "vectors": {"items": str(shop / "items.parquet"), "column": "vector"},
        "method": {"name": "rq_kmeans", "levels": 2, "size": 8},
    }
    return longrec.tokenize({**base, **sections}, into=shop / into, quiet=True)


def located(shop: Path, **changes: Any) -> dict[str, Any]:
    return {**EVENTS, "log": str(shop / "log.parquet"), **changes}


def test_the_folder_has_the_codes_of_a_fit(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", str(shop / "tokens.yaml"), "method.size=6", "--into", str(shop / "ids")]) == 0
    shown = capsys.readouterr().out
    assert "120 items, 2 levels of 6 codes (rq_kmeans), version 1" in shown
    assert "6 of 6" in shown
    assert "share their codes with another" in shown
    ids = SemanticIds.open(shop / "ids")
    table = pq.read_table(shop / "items.parquet")
    vectors = torch.from_numpy(np.stack(table["vector"].to_pylist()).astype(np.float32))
    codes = build_tokenizer({"name": "rq_kmeans", "levels": 2, "size": 6}).fit(vectors).codes
    assert ids.codes.tolist() == codes.tolist()
    assert ids.items.to_pylist() == table["item_id"].to_pylist()
    assert ids.key == "item_id"
    facts = json.loads((shop / "ids" / "semantic_ids.json").read_text())["facts"]
    assert facts["items"] == facts["distinct_vectors"] == 120
    assert [level["active"] for level in facts["levels"]] == [6, 6]


def test_weights_are_a_column_of_the_table(shop: Path) -> None:
    ids = run(shop, capacity={"weights": "clicks", "tau": 1.2})
    clicks = pq.read_table(shop / "items.parquet")["clicks"].to_numpy().clip(1)
    for level in range(2):
        loads = np.bincount(ids.codes[:, level], clicks, minlength=8)
        assert loads.max() <= 1.2 * clicks.sum() / 8 * (1 + 1e-9)
    assert ids.facts["capacity"]["tau"] == 1.2
    assert "capacity: at most" in ids.to_text()


def test_items_above_the_capacity_are_named(shop: Path) -> None:
    change_items(shop, lambda columns: columns["clicks"].__setitem__(9, 10_000))
    ids = run(shop, capacity={"weights": "clicks"})
    assert ids.facts["clipped_items"] == ["i9"]
    assert ids.facts["levels"][0]["capacity"]["clipped"] == 1
    assert "1 items are heavier than that, and count as that" in ids.to_text()


def test_unirec_4_weights_and_pairs_are_dated_before_the_evaluation(shop: Path) -> None:
    """UniRec 4: events at and after ``until`` count neither as weights nor as pairs (DRQ 10)."""
    items = pq.read_table(shop / "items.parquet")["item_id"].combine_chunks()
    log = pq.read_table(shop / "log.parquet").to_pydict()
    window = read_item_events(EventsConfig(**located(shop)), items, with_pairs=True)
    early = [row for row in range(800) if log["time"][row] < START + 2 * DAY]
    assert window.events == len(early) == 400
    counts = np.bincount([int(log["item_id"][row][1:]) for row in early], minlength=120)
    assert window.counts.tolist() == counts.tolist()
    by_hand = set()
    for user in range(40):
        own = [int(log["item_id"][row][1:]) for row in early if log["user_id"][row] == user]
        by_hand |= {(first, second) for first, second in zip(own, own[1:]) if first != second}
    assert set(map(tuple, window.pairs.tolist())) == by_hand
    later = read_item_events(EventsConfig(**located(shop, until="2025-01-04")), items, with_pairs=True)
    assert later.counts[5] > window.counts[5] + 150
    ids = run(shop, capacity={"weights": "events", "tau": 1.5}, events=located(shop))
    loads = np.bincount(ids.codes[:, 0], counts.clip(1), minlength=8)
    assert loads.max() <= 1.5 * counts.clip(1).sum() / 8 * (1 + 1e-9)


def test_drq_10_pairs_are_within_the_largest_gap(shop: Path) -> None:
    items = pq.read_table(shop / "items.parquet")["item_id"].combine_chunks()
    every = read_item_events(EventsConfig(**located(shop)), items, with_pairs=True).pairs
    near = read_item_events(EventsConfig(**located(shop, max_gap="1h")), items, with_pairs=True).pairs
    assert 0 < len(near) < len(every)
    drq = {"name": "drq", "levels": 2, "size": 8, "width": 4, "hidden": [8], "epochs": 2, "contrast": 0.3}
    ids = run(shop, method=drq, events=located(shop))
    assert ids.facts["events"] == {"events": 400, "unknown": 0, "pairs": len(every)}


def test_items_without_a_vector_are_counted(shop: Path) -> None:
    items = pa.array(["i5", "i7"])
    window = read_item_events(EventsConfig(**located(shop)), items, with_pairs=False)
    assert window.unknown == 400 - int(window.counts.sum()) > 0
    with pytest.raises(DataError, match="none of an item with a vector"):
        read_item_events(EventsConfig(**located(shop)), pa.array(["x"]), with_pairs=False)
    with pytest.raises(DataError, match="text as keys; expected keys as of the vectors: int64"):
        read_item_events(EventsConfig(**located(shop)), pa.array([1]), with_pairs=False)


def test_append_encodes_new_items_alone(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenize", str(shop / "tokens.yaml"), "--quiet"]
    assert main([*command, "--into", str(shop / "ids")]) == 0
    before = SemanticIds.open(shop / "ids")

    def add(columns: dict[str, Any]) -> None:
        for name, value in {"item_id": "new", "vector": columns["vector"][3], "title": "x", "clicks": 0}.items():
            columns[name].insert(2, value)
        columns["vector"][5] = [9.0] * 6  # of an item that has codes

    change_items(shop, add)
    assert main([*command, "--append", str(shop / "ids")]) == 0
    assert "121 items, 2 levels of 8 codes (rq_kmeans), version 2, which added 1 item" in capsys.readouterr().out
    after = SemanticIds.open(shop / "ids")
    assert after.codes[:120].tolist() == before.codes.tolist()
    assert after.items.to_pylist()[120] == "new"
    assert after.codes[120].tolist() == before.codes[3].tolist()
    assert after.suffix[120] > before.suffix[3]
    assert main([*command[:-1], "--append", str(shop / "ids")]) == 0
    assert "nothing to add, since all 121 items have codes" in capsys.readouterr().err
    assert SemanticIds.open(shop / "ids").version == 2
    query = f"SELECT row_number() OVER () AS item_id, vector FROM read_parquet('{shop / 'items.parquet'}')"
    with pytest.raises(DataError, match="keys of the type int64; expected string"):
        longrec.tokenize({"vectors": {"items": {"query": query}, "column": "vector"}}, append=shop / "ids")


def test_text_becomes_vectors_and_new_items_are_encoded_alike(shop: Path) -> None:
    vectors = {"items": str(shop / "items.parquet"), "text": ["title"], "width": 4}
    ids = run(shop, vectors=vectors)
    titles = pq.read_table(shop / "items.parquet")["title"].to_pylist()
    same = [row for row in range(1, 120) if sorted(titles[row].split()) == sorted(titles[0].split())]
    assert all(ids.codes[row].tolist() == ids.codes[0].tolist() for row in same)

    def add(columns: dict[str, Any]) -> None:
        for name, value in {"item_id": "new", "vector": [0.0] * 6, "title": titles[0], "clicks": 0}.items():
            columns[name].append(value)

    change_items(shop, add)
    config = {"vectors": vectors, "method": {"name": "rq_kmeans", "levels": 2, "size": 8}}
    more = longrec.tokenize(config, append=shop / "ids", quiet=True)
    assert more.codes[120].tolist() == ids.codes[0].tolist()
    with pytest.raises(DataError, match="no text; expected vectors from where those of"):
        longrec.tokenize(shop / "tokens.yaml", append=shop / "ids")
    run(shop, "vectors")
    with pytest.raises(DataError, match="text; expected vectors from where .*: no text"):
        longrec.tokenize(config, append=shop / "vectors")
    with pytest.raises(DataError, match="more of both than the width 64"):
        run(shop, "other", vectors={**vectors, "width": 64})


def test_text_without_scikit_learn_says_what_to_install(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(text_encoder, "importlib", SimpleNamespace(import_module=fail))
    with pytest.raises(ResourceError, match=r"scikit-learn is not installed.*\n.*[Pp]ip install 'longrec\[text\]'"):
        run(shop, vectors={"items": str(shop / "items.parquet"), "text": ["title"], "width": 4})


def test_a_list_in_a_text_file_is_read(shop: Path) -> None:
    table = pq.read_table(shop / "items.parquet").to_pydict()
    lines = [f'{key}\t"{list(map(float, v))}"' for key, v in zip(table["item_id"], table["vector"])]
    (shop / "items.tsv").write_text("\n".join(["item_id\tvector", *lines]) + "\n")
    own = run(shop, vectors={"items": str(shop / "items.tsv"), "column": "vector"})
    assert own.codes.tolist() == run(shop, "other").codes.tolist()


def set_vector(row: int, vector: Any) -> Callable[[dict[str, Any]], None]:
    return lambda columns: columns["vector"].__setitem__(row, vector)


BAD: Mapping[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "NaN": (
        set_vector(7, [float("nan")] * 6),
        r"NaN or infinite in the vectors of 1 item, first 'i7' in row 8; expected finite",
    ),
    "null number": (set_vector(7, [None] * 6), r"null, NaN or infinite in the vectors of 1 item, first 'i7' in row 8"),
    "missing": (set_vector(7, None), r"no vector of 1 item, first 'i7' in row 8"),
    "width": (
        set_vector(7, [1.0]),
        r"1 item of another width: 'i7' in row 8 has 1 numbers; expected 6, as most items have",
    ),
    "twice": (lambda columns: columns["item_id"].__setitem__(7, "i3"), r"1 item in several rows, such as 'i3' in 2"),
    "no key": (lambda columns: columns["item_id"].__setitem__(7, None), r"1 null value, first in row 8"),
    "weight": (lambda columns: columns["clicks"].__setitem__(7, -1), r"the weight -1.0 of the item 'i7' in row 8"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_vectors_are_refused_with_the_item(fault: str, shop: Path) -> None:
    change, message = BAD[fault]
    change_items(shop, change)
    with pytest.raises(DataError, match=message):
        run(shop, capacity={"weights": "clicks"})
    assert not (shop / "ids").exists()


def test_more_codes_than_different_vectors_are_refused(shop: Path) -> None:
    change_items(shop, lambda columns: columns.update(vector=[columns["vector"][row % 5] for row in range(120)]))
    with pytest.raises(DataError, match=r"120 items with 5 different vectors, for 8 codes .*\n.*method.size to 2"):
        run(shop)


def test_all_faults_of_a_config_are_reported_together(shop: Path) -> None:
    with pytest.raises(ConfigError) as error:
        longrec.tokenize(
            {
                "vectors": {"items": "a.parquet", "colum": "vector"},
                "method": {"name": "drq", "size": 1, "contrst": 0.3},
                "capacity": {"tau": 0.5},
                "seed": -1,
            },
            into=shop / "ids",
        )
    text = str(error.value)
    for fault in ("vectors.colum", "capacity.tau", "seed", "method.size", "method.contrst"):
        assert fault in text
    faults = {
        "one of items and run": {"vectors": {}},
        "column and text": {"vectors": {"items": "a.parquet"}},
        "section events, which is missing": {"capacity": {"weights": "events"}},
        "method.contrast: pairs": {"method": {"name": "drq", "contrast": 0.3}},
        "events: are not read": {"events": located(shop)},
        "a column needs vectors.items": {"vectors": {"run": "runs/x"}, "capacity": {"weights": "clicks"}},
        "until is required": {"events": located(shop, until=None)},
    }
    for message, sections in faults.items():
        with pytest.raises(ConfigError, match=message):
            run(shop, **sections)


def test_a_folder_is_new_or_appended_to(shop: Path) -> None:
    run(shop)
    with pytest.raises(RunError, match="it exists; expected a new folder"):
        run(shop)
    for options in ({}, {"into": "a", "append": "b"}):
        with pytest.raises(ConfigError, match="either a new folder"):
            longrec.tokenize(shop / "tokens.yaml", **options)
    with pytest.raises(RunError, match="cannot be read"):
        longrec.tokenize(shop / "tokens.yaml", append=shop / "none")


def test_items_of_a_trained_retriever_have_its_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = generate_dataset("hidden_catalog", users=150, groups=4)
    job = dataset.job(write(dataset, tmp_path), {"name": "sasrec", "embedding_dim": 8}, epochs=2)
    job["data"]["folder"], job["fit"]["runs"] = str(tmp_path / "prepared"), str(tmp_path / "runs")
    trained = longrec.train(job, quiet=True)
    config = {"vectors": {"run": str(trained.folder), "item": "item"}, "method": {"name": "rq_kmeans", "size": 4}}
    ids = longrec.tokenize(config, into=tmp_path / "ids", quiet=True)
    log, model = trained.log(), trained.model()
    assert ids.items.to_pylist() == log.items.keys.values.to_pylist()
    assert ids.codes.shape == (len(log.items) - 1, 3)
    assert ids.tokenizer.width == model.width  # type: ignore[attr-defined]
    assert ids.facts["distinct_vectors"] > 4
    with torch.inference_mode():
        vectors = model.items(build_catalog(log, np.arange(1, len(log.items)), 2**62))  # type: ignore[attr-defined]
    assert ids.codes.tolist() == ids.tokenizer.codes(vectors.clone()).tolist()
    monkeypatch.setattr(longrec.Run, "model", lambda self: torch.nn.Identity())
    with pytest.raises(RunError, match="sasrec, which has no vectors of items"):
        longrec.tokenize(config, into=tmp_path / "no")


def test_the_bound_of_a_capacity_has_no_weights() -> None:
    from longrec.semantic_ids.settings import CapacityConfig

    assert CapacityConfig(tau=1.3, weights="events").bound() == Capacity(tau=1.3)


def test_faults_of_vectors_have_counts_and_advice_that_helps(shop: Path) -> None:
    def fail(vectors: list[Any], says: str) -> None:
        pq.write_table(pa.table({"item_id": range(len(vectors)), "vector": vectors}), shop / "bad.parquet")
        with pytest.raises(DataError, match=says):
            run(shop, "bad", vectors={"items": str(shop / "bad.parquet"), "column": "vector"})

    fail([[1.0, float(row)] if row > 1 else [1.0, float("nan")] for row in range(20)], "vectors of 2 items, first 0 in")
    fail([[1.0, 2.0] if row else [1.0] for row in range(20)], "1 item of another width: 0 in row 1 has 1 numbers")
    fail([[1.0, 2.0]] * 20, "1 different vectors.*\n.*ive items vectors that differ")
    fail(["0.5 1.5"] * 20, "text that is not a list of numbers, of 20 items, such as '0.5 1.5'")
