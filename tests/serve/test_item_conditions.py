"""Conditions on items, and retrieval of the items that may be retrieved alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import retrievers
import shop

from longrec.errors import ConfigError
from longrec.exporting.bundle import Bundle
from longrec.pipeline.candidates import Candidates
from longrec.serve.item_conditions import ItemConditions
from longrec.serve.open_model import OpenModel
from longrec.serve.request_json import decode_recommend_request
from longrec.serve.retrieve_stage import RetrieveStage

CONDITIONS: list[tuple[str, Any]] = [
    ("year >= 1990", lambda row: row["year"] is not None and row["year"] >= 1990),
    ("year >= 1990 AND price < 9 -- both", lambda row: (row["year"] or 0) >= 1990 and row["price"] < 9),
    ("list_contains(genres, 'a') OR item_id = 'i0'", lambda row: "a" in row["genres"] or row["item_id"] == "i0"),
    ("NOT year < 1990", lambda row: row["year"] is not None and row["year"] >= 1990),
    ("year IS NULL", lambda row: row["year"] is None),
    ("len(actors) = 0", lambda row: not row["actors"]),
    ("item_id IN ('i3', 'i17', 'it''s')", lambda row: row["item_id"] in ("i3", "i17")),
    ("null", lambda row: False),
]
REFUSED = [
    ("yeer >= 1990", "where: 1 fault\n  'yeer >= 1990': no column 'yeer', did you mean 'year'?"),
    ("year", "is a value of type BIGINT, not true or false"),
    ("year >= 1990) OR (true", "syntax error"),
    ("true; DROP TABLE items", "more than one statement"),
    ("true, false", "single expression"),
    ("", "'': "),
    ("year >= 'soon'", "Could not convert string 'soon'"),
    ("year IN (SELECT 1990)", "write one without a query inside"),
    ("EXISTS (SELECT * FROM read_csv('secrets.csv'))", "write one without a query inside"),
    ("year > (SELECT max(year) FROM table_of_this_process)", "write one without a query inside"),
    ("year = getenv('HOME')", "getenv"),
    ("count(*) > 3", "aggregates"),
    ("row_number() OVER () > 3", "window"),
]


@pytest.mark.parametrize(("condition", "meets"), CONDITIONS, ids=[condition for condition, _ in CONDITIONS])
def test_a_condition_is_evaluated_on_every_item(full: shop.Shop, condition: str, meets: Any) -> None:
    conditions = ItemConditions(full.things)
    mask = conditions.match(condition)
    assert mask.tolist() == [bool(meets(row)) for row in full.things.to_pylist()]
    assert conditions.match(condition) is mask


@pytest.mark.parametrize(("condition", "message"), REFUSED, ids=[condition for condition, _ in REFUSED])
def test_what_is_no_condition_is_refused(full: shop.Shop, condition: str, message: str) -> None:
    table_of_this_process = pa.table({"year": [1]})
    with pytest.raises(ConfigError) as caught:
        ItemConditions(full.things).match(condition)
    assert message.lower() in str(caught.value).lower()
    assert len(table_of_this_process) == 1


@pytest.mark.parametrize("kind", ["vectors", "lists", "counts"])
def test_a_stage_retrieves_the_best_of_the_items_that_it_may(kind: str) -> None:
    retrieval: retrievers.RetrievalShop = getattr(retrievers, kind)()
    key, where = ("film", "film >= 3") if kind == "counts" else ("item_id", "year >= 1990 AND price < 20")
    model = OpenModel(Bundle.open(retrieval.bundle))
    things = retrieval.shop.things.to_pylist()
    met = {
        row[key]
        for row in things
        if (row[key] >= 3 if key == "film" else (row["year"] or 0) >= 1990 and row["price"] < 20)
    }
    for row in (3, 41, 59):
        every = retrieval.retrieve(row, 1_000, False)
        at = int(retrieval.shop.segment.times[row])
        user = int(np.searchsorted(retrieval.shop.segment.offsets, row, side="right")) - 1
        seen = retrieval.find_seen_items(user, at)
        seen_keys = {retrieval.shop.items.key(item) for item in seen.tolist()}
        query = decode_recommend_request(orjson.dumps(every.request)).build_query(
            int(retrieval.shop.segment.times[row])
        )
        for count, exclude in ((2, True), (5, False), (100, True)):
            stage = RetrieveStage(model, count=count, where=where, exclude_seen=exclude, source="own")
            retrieved = stage(Candidates.of([], "request"), query)
            wanted = [item for item in every.items if item in met and not (exclude and item in seen_keys)]
            scores = dict(zip(every.items, every.scores))
            assert len(retrieved) == min(count, len(wanted))
            assert set(retrieved.keys.tolist()) <= set(wanted)
            expected = [scores[item] for item in wanted[:count]]
            if kind != "lists" or count == 100:
                np.testing.assert_allclose(retrieved.score, expected, atol=1e-4)
            assert retrieved.sources == ("own",)
    with pytest.raises(ConfigError, match="retrieve.where: 1 fault"):
        RetrieveStage(model, where="nothing = 1")
    model.close()


def test_a_bundle_without_an_item_table_takes_no_conditions() -> None:
    model = OpenModel(Bundle.open(retrievers.vectors().bundle))
    model.catalog._columns = None
    with pytest.raises(ConfigError, match=r"reads raw columns of items.*export it from a log with an item table"):
        RetrieveStage(model, where="year >= 1990")
    model.close()
