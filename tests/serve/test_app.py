"""The HTTP application over a real socket."""

from __future__ import annotations

import http.client
import re
from typing import Any

import numpy as np
import orjson
import pytest

from longrec.exporting.inputs import make_random_tensors
from longrec.serve.limits import Limits


def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    content = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
    connection.request(method, path, content)
    response = connection.getresponse()
    answer = response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def error_fields(content: bytes) -> dict[str, str]:
    return orjson.loads(content)["error"]


def test_rank_over_http(url: str, full: Any) -> None:
    golden = full.golden[1]
    status, headers, content = call(url, "POST", "/rank", golden.request)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert re.fullmatch(r"rank;dur=[\d.]+, service;dur=[\d.]+", headers["server-timing"])
    answer = orjson.loads(content)
    scores = {item["id"]: item["score"] for item in answer["items"]}
    assert [scores[key] for key in golden.request["candidates"]] == pytest.approx(golden.scores, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        (b"{", 400, "body"),
        (b'{"user": NaN, "candidates": [1]}', 400, "body"),
        (b"", 400, "body"),
        ({"user": 1}, 422, "candidates"),
        ({"user": 1, "candidates": []}, 422, "candidates"),
        ({"user": 1, "candidates": list(range(100_001))}, 413, "candidates"),
        (b" " * (Limits().body_bytes + 1), 413, "body"),
    ],
)
def test_faults_are_json_with_four_fields(url: str, body: Any, status: int, where: str) -> None:
    got, headers, content = call(url, "POST", "/rank", body)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert set(error_fields(content)) == {"where", "found", "expected", "do"}
    assert error_fields(content)["where"] == where
    assert b"Traceback" not in content


def test_a_body_without_a_length_is_cut_off_too(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    piece = b" " * 2**20
    try:
        connection.request("POST", "/rank", iter([piece] * 17), encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused before the last chunk was sent
    response = connection.getresponse()
    assert response.status == 413
    connection.close()


def test_other_pages_and_methods(url: str) -> None:
    status, _, content = call(url, "GET", "/nothing")
    assert (status, error_fields(content)["where"]) == (404, "/nothing")
    status, headers, content = call(url, "GET", "/rank")
    assert (status, headers["allow"], error_fields(content)["expected"]) == (405, "POST", "POST")
    status, _, content = call(url, "POST", "/v2/models/other/infer", {"inputs": []})
    assert status == 404
    assert orjson.loads(content)["error"] == "model: the unknown model 'other'; expected din"


def test_the_open_inference_protocol(url: str, full: Any, service: Any) -> None:
    assert orjson.loads(call(url, "GET", "/v2")[2])["name"] == "longrec"
    assert call(url, "GET", "/v2/health/live")[::2] == (200, b'{"live":true}')
    assert call(url, "GET", "/v2/health/ready")[::2] == (200, b'{"ready":true}')
    assert orjson.loads(call(url, "GET", "/v2/models/din/ready")[2]) == {"name": "din", "ready": True}
    metadata = orjson.loads(call(url, "GET", "/v2/models/din")[2])
    assert metadata["platform"] == "onnxruntime_onnx"
    assert [entry["name"] for entry in metadata["inputs"]] == [e.name for e in service.bundle.manifest.inputs]
    tensors = make_random_tensors(service.bundle.manifest.inputs, 3, 4, 0)
    names = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
    inputs = [
        {"name": name, "shape": [len(data)], "datatype": names[data.dtype], "data": data.tolist()}
        for name, data in tensors.items()
    ]
    body = {"id": "a7", "inputs": inputs, "outputs": [{"name": "score"}]}
    status, _, content = call(url, "POST", "/v2/models/din/infer", body)
    answer = orjson.loads(content)
    assert (status, answer["id"], answer["model_name"]) == (200, "a7", "din")
    output = answer["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("score", "FP32", [3])
    assert output["data"] == pytest.approx(service.served.programs["score"].run(tensors).tolist(), abs=1e-6)
    status, _, content = call(url, "POST", "/v2/models/din/infer", {"inputs": inputs[1:]})
    refusal = orjson.loads(content)
    assert (status, refusal["parts"]["where"]) == (422, "inputs")
    assert refusal["error"].startswith("inputs: no f.user_id; expected every input")


def test_the_console_needs_nothing_from_elsewhere(url: str) -> None:
    status, headers, content = call(url, "GET", "/")
    page = content.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"https?://|src=|@import|<link(?! rel=\"icon\" href=\"data:)", page)
    for page_path in re.findall(r'fetch\("([^"]+)"', page):
        method = "POST" if page_path in ("rank", "history") else "GET"
        assert call(url, method, f"/{page_path}", b"{}" if method == "POST" else None)[0] != 404


def test_the_example_of_the_console_is_a_request_that_works(url: str) -> None:
    example = orjson.loads(call(url, "GET", "/example")[2])
    assert call(url, "POST", "/rank", example)[0] == 200


def test_metrics_count_requests(url: str, full: Any) -> None:
    def read_counter(name: str) -> float:
        text = call(url, "GET", "/metrics")[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = ['longrec_requests_total{route="/rank",status="200"}', 'longrec_requests_total{route="/rank",status="404"}']
    before = [read_counter(name) for name in names]
    ranked, size = read_counter("longrec_candidates_count"), read_counter("longrec_candidates_sum")
    for _ in range(3):
        call(url, "POST", "/rank", full.golden[0].request)
    call(url, "POST", "/rank", full.golden[0].request | {"user": 1})
    assert [read_counter(name) for name in names] == [before[0] + 3, before[1] + 1]
    assert read_counter("longrec_candidates_count") == ranked + 3
    assert read_counter("longrec_candidates_sum") == size + 3 * len(full.golden[0].request["candidates"])
    assert read_counter('longrec_model_info{model="din"') == 1
    assert read_counter('longrec_request_seconds_bucket{le="+Inf",route="/rank"}') >= 4
