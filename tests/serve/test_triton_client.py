"""The Open Inference Protocol as NVIDIA's own client speaks it, over a real socket."""

from __future__ import annotations

import gzip
import http.client
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from longrec.exporting.inputs import make_random_tensors
from longrec.serve.limits import Limits

DATATYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="module")
def version(service: Any) -> str:
    return str(service.bundle.manifest.version)


def build_inputs(tensors: dict[str, NDArray[Any]], binary: bool) -> list[Any]:
    inputs = []
    for name, tensor in tensors.items():
        one = triton.InferInput(name, list(tensor.shape), DATATYPES[tensor.dtype])
        one.set_data_from_numpy(tensor, binary_data=binary)
        inputs.append(one)
    return inputs


def make_tensors(service: Any, candidates: int = 3) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    tensors = make_random_tensors(service.bundle.manifest.inputs, candidates, 4, 0)
    return tensors, service.served.programs["score"].run(tensors)


def test_health_and_metadata(client: Any, version: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("din")
    assert metadata["versions"] == [version]
    assert client.get_model_metadata("din", version) == metadata
    assert client.is_model_ready("din")
    assert client.is_model_ready("din", version)
    assert not client.is_model_ready("din", "other")
    assert not client.is_model_ready("other")
    with pytest.raises(InferenceServerException, match="the unknown version 'other' of din; expected"):
        client.get_model_metadata("din", "other")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_tensors_travel_as_bytes_or_as_json(
    client: Any, service: Any, version: str, binary: bool, compression: str | None
) -> None:
    tensors, expected = make_tensors(service)
    inputs = build_inputs(tensors, binary)
    for outputs in (
        None,  # the client then asks for binary data of all outputs
        [triton.InferRequestedOutput("score", binary_data=True)],
        [triton.InferRequestedOutput("score", binary_data=False)],
    ):
        result = client.infer(
            "din", inputs, version, outputs, "a7", request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )  # fmt: skip
        assert np.array_equal(result.as_numpy("score"), expected)
        response = result.get_response()
        assert (response["id"], response["model_version"]) == ("a7", version)
        is_binary = outputs is None or outputs[0]._get_tensor()["parameters"]["binary_data"]
        assert ("data" in response["outputs"][0]) is not is_binary


def test_large_responses_are_compressed_for_a_client_that_accepts_it(url: str, service: Any, client: Any) -> None:
    tensors, expected = make_tensors(service, 2_000)
    inputs = build_inputs(tensors, binary=True)
    result = client.infer("din", inputs, response_compression_algorithm="gzip")
    assert np.array_equal(result.as_numpy("score"), expected)
    body, length = client.generate_request_body(inputs)
    headers = {"inference-header-content-length": str(length)}
    plain, coded = (send(url, body, {**headers, "accept-encoding": name}) for name in ("identity", "gzip"))
    assert coded[1]["content-encoding"] == "gzip"
    assert plain[1]["vary"] == coded[1]["vary"] == "accept-encoding"
    assert "content-encoding" not in plain[1]
    assert gzip.decompress(coded[2]) == plain[2]
    assert int(coded[1]["content-length"]) == len(coded[2]) < len(plain[2])
    start = int(coded[1]["inference-header-content-length"])
    assert plain[2][start:] == expected.tobytes()
    assert coded[1]["content-type"] == "application/octet-stream"


def test_faults_reach_the_client_as_text(client: Any, service: Any) -> None:
    tensors, _ = make_tensors(service)
    inputs = build_inputs(tensors, binary=True)
    with pytest.raises(InferenceServerException, match=r"\[404\] .*the unknown version '9'"):
        client.infer("din", inputs, "9")
    with pytest.raises(InferenceServerException, match=r"\[422\] .*no f.user_id; expected every input"):
        client.infer("din", inputs[1:])
    with pytest.raises(InferenceServerException, match=r"\[422\] .*the unknown output 'logit'"):
        client.infer("din", inputs, outputs=[triton.InferRequestedOutput("logit")])
    wide = triton.InferInput("f.age", [1], "FP64").set_data_from_numpy(np.zeros(1))
    with pytest.raises(InferenceServerException, match=r"\[422\] .*datatype 'FP64'; expected FP32"):
        client.infer("din", [wide])


def send(
    url: str, body: bytes, headers: dict[str, str], path: str = "/v2/models/din/infer"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    answer = response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_other_routes_accept_compressed_bodies_too(url: str, full: Any) -> None:
    body = orjson.dumps(full.golden[1].request)
    plain = orjson.loads(send(url, body, {}, "/rank")[2])
    for encoding, content in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        status, headers, answer = send(url, content, {"content-encoding": encoding, "accept-encoding": "gzip"}, "/rank")
        assert (status, orjson.loads(answer)) == (200, plain)
        assert "content-encoding" not in headers
    for path in ("/rank", "/recommend", "/events", "/items", "/v2/models/din/infer"):
        status, _, answer = send(url, body, {"content-encoding": "br"}, path)
        assert (status, b"content-encoding" in answer) == (415, True), path
    bomb = gzip.compress(bytes(Limits().body_bytes + 1))
    status, _, answer = send(url, bomb, {"content-encoding": "gzip"}, "/rank")
    assert (status, orjson.loads(answer)["error"]["found"]) == (413, "more than 16,777,216 bytes decompressed")
