"""Binary data behind the JSON of the Open Inference Protocol, byte by byte."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import orjson
import pytest

from longrec.errors import RequestError
from longrec.exporting.inputs import Input, Output, ProgramFacts
from longrec.exporting.runtime import Program
from longrec.serve.open_inference import decode_infer_request
from longrec.serve.served_programs import ServedPrograms

INPUTS = [
    Input("f.user", "INT32", "user", "value", 5),
    Input("f.item", "INT32", "item", "value", 9),
    Input("f.vector", "FP32", "item", "value", 0, 2),
    Input("f.tags.values", "INT32", "item", "values", 4),
    Input("f.tags.offsets", "INT64", "item", "offsets", 0),
]
JSON_USER = {"name": "f.user", "shape": [1], "datatype": "INT32", "data": [4]}
ITEM, VECTOR = struct.pack("<2i", 8, 0), struct.pack("<4f", 0.5, -1.0, 2.0, 0.25)
VALUES, OFFSETS = b"", struct.pack("<3q", 0, 0, 0)


def describe(name: str, shape: list[int], datatype: str, data: bytes, **change: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}} | change


GOOD = [
    describe("f.vector", [2, 2], "FP32", VECTOR),
    JSON_USER,
    describe("f.tags.values", [0], "INT32", VALUES),
    describe("f.item", [2], "INT32", ITEM),
    describe("f.tags.offsets", [3], "INT64", OFFSETS),
]
BYTES = VECTOR + VALUES + ITEM + OFFSETS


def decode(inputs: list[dict[str, Any]], data: bytes = BYTES, length: str | None = "json", **more: Any) -> Any:
    content = orjson.dumps({"inputs": inputs, **more})
    header = str(len(content)) if length == "json" else length
    return decode_infer_request(content + data, INPUTS, ["score", "rank"], header)


def test_bytes_follow_in_the_order_of_the_json() -> None:
    tensors = decode(GOOD).tensors
    assert tensors["f.vector"].tolist() == [[0.5, -1.0], [2.0, 0.25]]
    assert tensors["f.item"].tolist() == [8, 0]
    assert tensors["f.user"].tolist() == [4]
    assert tensors["f.tags.values"].tolist() == []
    assert tensors["f.tags.offsets"].tolist() == [0, 0, 0]
    for entry in INPUTS:
        assert tensors[entry.name].dtype == entry.dtype
        assert tensors[entry.name].flags.aligned


@pytest.mark.parametrize(
    ("index", "change", "status", "where", "message"),
    [
        (3, {"parameters": {"binary_data_size": 12}}, 422, "inputs.f.item", "shape [2] with 3 values"),
        (3, {"shape": [1]}, 422, "inputs.f.item", "shape [1] with 2 values"),
        (3, {"parameters": {"binary_data_size": 7}}, 422, "inputs.f.item.parameters.binary_data_size", "multiple of 4"),
        (3, {"parameters": {"binary_data_size": -4}}, 422, "inputs.f.item.parameters.binary_data_size", "multiple"),
        (3, {"parameters": {"binary_data_size": True}}, 422, "inputs.f.item.parameters.binary_data_size", "True"),
        (3, {"parameters": {"binary_data_size": 8.0}}, 422, "inputs.f.item.parameters.binary_data_size", "8.0"),
        (3, {"parameters": {"binary_data_size": None}}, 422, "inputs.f.item.parameters.binary_data_size", "None"),
        (3, {"parameters": None}, 422, "inputs.f.item.data", "nothing; expected the numbers, or binary_data_size"),
        (3, {"parameters": {"binary_data_size": 2**62}}, 400, "inputs.f.item", "32 bytes of binary data"),
        (3, {"data": [8, 0]}, 422, "inputs.f.item", "data and binary_data_size; expected one of them"),
        (3, {"datatype": "INT64"}, 422, "inputs.f.item", "datatype 'INT64'; expected INT32"),
        (0, {"shape": [4]}, 422, "inputs.f.vector", "shape [4] with 4 values; expected [-1, 2]"),
        (
            0,
            {"parameters": {"shared_memory_region": "r"}},
            422,
            "inputs.f.vector",
            "the parameter shared_memory_region",
        ),
        (2, {"parameters": {"binary_data_size": 8}, "shape": [2]}, 400, "inputs.f.tags.offsets", "24 bytes, as|16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    index: int, change: dict[str, Any], status: int, where: str, message: str
) -> None:
    inputs = [{**entry, **change} if at == index else entry for at, entry in enumerate(GOOD)]
    with pytest.raises(RequestError) as caught:
        decode(inputs)
    assert (caught.value.status, caught.value.where) == (status, where)
    assert any(piece in str(caught.value) for piece in message.split("|"))


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        (BYTES[:-1], "inputs.f.tags.offsets", "23 bytes of binary data; expected 24, as binary_data_size says"),
        (b"", "inputs.f.vector", "0 bytes of binary data; expected 16"),
        (BYTES + b"xy", "body", "50 bytes of binary data, 2 too many; expected 48"),
    ],
)
def test_truncated_and_superfluous_bytes_are_refused(data: bytes, where: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(GOOD, data)
    assert (caught.value.status, caught.value.where) == (400, where)
    assert message in str(caught.value)


@pytest.mark.parametrize("length", ["0", "-1", "1e2", "999999", "", "٣", "9" * 5000])
def test_a_length_that_is_none_of_the_json_is_refused(length: str) -> None:
    with pytest.raises(RequestError, match="inference-header-content-length") as caught:
        decode(GOOD, length=length)
    assert caught.value.status == 400


def test_binary_data_without_its_header_and_a_header_without_binary_data() -> None:
    with pytest.raises(RequestError, match="body: not JSON") as caught:
        decode(GOOD, length=None)
    assert caught.value.status == 400
    with pytest.raises(RequestError, match=r"inputs.f.vector: binary_data_size without the header") as caught:
        decode(GOOD, data=b"", length=None)
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="body: not JSON"):
        decode(GOOD, length="5")
    with pytest.raises(RequestError, match="no f.item"):
        decode([JSON_USER], data=b"")


@pytest.mark.parametrize(("number", "message"), [(np.nan, "NaN"), (np.inf, "too large"), (-np.inf, "too large")])
def test_bytes_of_no_finite_number_are_refused_as_in_json(number: float, message: str) -> None:
    with pytest.raises(RequestError, match=rf"inputs.f.vector: .*{message}.*; expected FP32, finite") as caught:
        decode(GOOD, struct.pack("<4f", 0.5, number, 2.0, 0.25) + BYTES[16:])
    assert caught.value.status == 422


def test_ids_in_bytes_are_checked_against_their_tables() -> None:
    with pytest.raises(RequestError, match="ids from -1 to 0; expected ids from 0 to 8"):
        decode(GOOD, VECTOR + struct.pack("<2i", -1, 0) + OFFSETS)


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ({}, {"score": False, "rank": False}),
        ({"outputs": []}, {"score": False, "rank": False}),
        ({"outputs": None, "parameters": None}, {"score": False, "rank": False}),
        ({"parameters": {"binary_data_output": True}}, {"score": True, "rank": True}),
        ({"outputs": [{"name": "rank"}, {"name": "score"}]}, {"rank": False, "score": False}),
        (
            {
                "outputs": [{"name": "rank", "parameters": {"binary_data": False}}, {"name": "score"}],
                "parameters": {"binary_data_output": True},
            },
            {"rank": False, "score": True},
        ),
        ({"outputs": [{"name": "rank", "parameters": {"binary_data": True}}]}, {"rank": True}),
    ],
)
def test_outputs_are_what_the_request_lists(request_fields: dict[str, Any], expected: dict[str, bool]) -> None:
    assert list(decode(GOOD, **request_fields).outputs.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"outputs": [{"name": "rank"}, {"name": "rank"}]}, "outputs.rank: requested twice"),
        ({"outputs": [{"name": "logit"}]}, "the unknown output 'logit'; expected score, rank"),
        ({"outputs": [{"name": "rank", "parameters": {"classification": 2}}]}, "the parameter classification"),
        ({"outputs": [{"name": "rank", "parameters": {"binary_data": 1}}]}, "outputs.rank.parameters.binary_data: 1"),
        ({"parameters": {"binary_data_output": "yes"}}, "parameters.binary_data_output: 'yes'; expected true or false"),
    ],
)
def test_outputs_that_cannot_be_returned(request_fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(GOOD, **request_fields)
    assert caught.value.status == 422
    assert message in str(caught.value)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> ServedPrograms:
    """A program of two outputs, the double of its input and its whole numbers."""
    path = tmp_path_factory.mktemp("program") / "program.onnx"
    tensor, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Add", ["f.price", "f.price"], ["score"]),
            onnx.helper.make_node("Cast", ["f.price"], ["rank"], to=kinds.INT32),
        ],
        "two",
        [tensor("f.price", kinds.FLOAT, ["C"])],
        [tensor("score", kinds.FLOAT, ["C"]), tensor("rank", kinds.INT32, ["C"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    inputs = [Input("f.price", "FP32", "item", "value", 0)]
    facts = ProgramFacts(path.name, inputs, [Output("score", "FP32", [-1]), Output("rank", "INT32", [-1])])
    manifest = SimpleNamespace(version="3", programs={"score": facts})
    opened: Any = SimpleNamespace(
        name="two", bundle=SimpleNamespace(manifest=manifest), programs={"score": Program(path)}
    )
    return ServedPrograms([opened])


PRICE = {"name": "f.price", "shape": [2], "datatype": "FP32", "data": [1.5, 3]}


def test_all_outputs_of_a_program_return(programs: ServedPrograms) -> None:
    assert programs.metadata("two")["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        {"name": "rank", "datatype": "INT32", "shape": [-1]},
    ]
    answer = programs.infer("two", orjson.dumps({"id": "", "inputs": [PRICE]}), "3")
    assert answer.headers == {"content-type": "application/json"}
    assert orjson.loads(answer.content) == {
        "model_name": "two",
        "model_version": "3",
        "id": "",
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [3.0, 6.0]},
            {"name": "rank", "datatype": "INT32", "shape": [2], "data": [1, 3]},
        ],
    }
    with pytest.raises(RequestError, match="the unknown version '4' of two; expected 3") as caught:
        programs.infer("two", orjson.dumps({"inputs": [PRICE]}), "4")
    assert caught.value.status == 404


def test_binary_outputs_follow_the_json_in_its_order(programs: ServedPrograms) -> None:
    outputs = [{"name": "rank", "parameters": {"binary_data": True}}, {"name": "score"}]
    body = orjson.dumps({"inputs": [PRICE], "outputs": outputs, "parameters": {"binary_data_output": True}})
    answer = programs.infer("two", body)
    assert answer.json_length is not None
    assert answer.headers["inference-header-content-length"] == str(answer.json_length)
    assert answer.headers["content-type"] == "application/octet-stream"
    described = orjson.loads(answer.content[: answer.json_length])["outputs"]
    assert described == [
        {"name": "rank", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}},
        {"name": "score", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    assert answer.content[answer.json_length :] == struct.pack("<2i2f", 1, 3, 3.0, 6.0)
