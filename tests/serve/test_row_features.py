"""Features computed from columns of a row: a request with the raw values is scored like the row of the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from row_shop import PREJOINED, ExportedLog, build_request, export_log, sort_rows

from longrec.data.gather import gather
from longrec.errors import RequestError
from longrec.serve.client import client
from longrec.serve.interface import Client
from longrec.serve.service import Service


def test_what_a_request_brings(exported: ExportedLog) -> None:
    service = Service(exported.bundle)
    assert set(service.served.encoder.context) == {"page", "stats", "tags", "looked_at", "hour", "lasts"}
    assert set(service.served.encoder.candidate_context) == {
        *(
            "brand",
            "price",
            "shop_id",
            "discount",
            "words",
            "labels",
            "label_weights",
            "sizes",
            "prices",
            "brands_of_page",
        )
    }


def test_a_request_of_raw_values_scores_as_the_row(exported: ExportedLog) -> None:
    assert_scores_agree(exported)


def test_a_prejoined_request_scores_as_the_row(tmp_path: Path) -> None:
    assert_scores_agree(export_log(tmp_path, PREJOINED))


def assert_scores_agree(exported: ExportedLog) -> None:
    raw, service = sort_rows(exported), Service(exported.bundle)
    with torch.no_grad():
        scores = torch.sigmoid(exported.model(gather(exported.log, np.arange(len(raw))))).numpy()
    for at in range(0, len(raw), 7):
        taken, others = {raw[at]["item"]}, []
        for one in raw:
            if one["item"] not in taken:
                others.append(one)
                taken.add(one["item"])
        body = json.dumps(build_request(service, raw[at], others[:5]))
        items = {item["id"]: item["score"] for item in json.loads(service.answer(body.encode()))["items"]}
        assert items[raw[at]["item"]] == pytest.approx(float(scores[at]), abs=1e-6)


def test_ids_and_numbers_are_the_same_to_the_bit(exported: ExportedLog) -> None:
    raw, service = sort_rows(exported), Service(exported.bundle)
    log, fitted = exported.log, exported.log.fitted
    batch = gather(log, np.arange(len(raw)))
    for at in range(0, len(raw), 11):
        request = decode_row_request(service, raw[at])
        query, encoder = request.build_query(0), service.served.encoder
        candidates = encoder.encode_candidates(request.build_candidates(), query)
        inputs = {**query.encode(encoder).inputs, **encoder.build_item_tensors(candidates, 0)}
        for name in [n for n in fitted.schema.features if fitted.schema.in_row(n)]:
            own = batch.features[name]
            if isinstance(own, torch.Tensor):
                np.testing.assert_array_equal(inputs[f"f.{name}"][0], own[at].numpy())
                continue
            span = slice(int(own.offsets[at]), int(own.offsets[at + 1]))
            np.testing.assert_array_equal(inputs[f"f.{name}.values"], own.values[span].numpy())
            if own.weights is not None:
                np.testing.assert_array_equal(inputs[f"f.{name}.weights"], own.weights[span].numpy())


def decode_row_request(service: Service, row: Mapping[str, Any]) -> Any:
    from longrec.serve.request_json import decode_request

    return decode_request(json.dumps(build_request(service, row, [])).encode())


def test_golden_requests_hold_the_candidates_columns(exported: ExportedLog) -> None:
    service = Service(exported.bundle)
    assert service.check() < 1e-5
    example = service.example()
    assert set(example["candidate_context"]) == set(service.served.encoder.candidate_context)
    assert {len(values) for values in example["candidate_context"].values()} == {len(example["candidates"])}
    assert all(brand is None or brand[0] in "bu" for brand in example["candidate_context"]["brand"])


def test_a_client_sends_them(exported: ExportedLog) -> None:
    raw = sort_rows(exported)
    with client(exported.bundle) as one:
        assert isinstance(one, Client)
        request = build_request(Service(exported.bundle), raw[8], [])
        ranking = one.rank(**request)
        request["candidate_context"]["brand"] = np.array([request["candidate_context"]["brand"][0]], object)
        request["candidate_context"]["labels"] = request["candidate_context"]["label_weights"] = None
        again = one.rank(**request)
    assert len(ranking) == len(again) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"brand": ["b1", "b2"]}, "candidate_context.brand: 2 values for 1 candidates; expected one per candidate"),
        ({"brnd": ["b1"]}, "candidate_context: the unknown key 'brnd'"),
        ({"sizes": ["1;2"]}, "candidate_context.sizes: 2 numbers in row 0: 1;2; expected 3 in every row"),
        ({"words": ["a:b"]}, "candidate_context.words: weights: text, for example 'b'; expected numbers"),
        ({"prices": ["b1"]}, "candidate_context.prices: the pair 'b1'; expected text such as key:value"),
        ({"brand": [7]}, "candidate_context.brand: integers, for example 7; expected text, as in the log"),
    ],
)
def test_columns_that_do_not_fit(exported: ExportedLog, change: dict[str, Any], says: str) -> None:
    service = Service(exported.bundle)
    request = build_request(service, sort_rows(exported)[5], [])
    request["candidate_context"] |= change
    with pytest.raises(RequestError) as raised:
        service.answer(json.dumps(request).encode())
    assert says in str(raised.value)
    assert raised.value.status == 422


def test_a_column_that_is_left_out(exported: ExportedLog) -> None:
    service = Service(exported.bundle)
    request = build_request(service, sort_rows(exported)[5], [])
    del request["candidate_context"]
    with pytest.raises(RequestError, match="candidate_context: no 'brand'; no 'price'"):
        service.answer(json.dumps(request).encode())


def test_a_cross_of_the_wrong_type(exported: ExportedLog) -> None:
    service = Service(exported.bundle)
    request = build_request(service, sort_rows(exported)[5], [])
    request["context"] |= {"hour": "07", "page": "p1"}
    with pytest.raises(RequestError, match=r"context.hour: text, for example '07'; expected integers, as in the log"):
        service.answer(json.dumps(request).encode())
