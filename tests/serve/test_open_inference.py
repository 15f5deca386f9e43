from __future__ import annotations

from typing import Any

import orjson
import pytest

from longrec.errors import RequestError
from longrec.exporting.inputs import Input
from longrec.serve.open_inference import build_metadata, decode_infer_request, encode_infer_response

INPUTS = [
    Input("f.user", "INT32", "user", "value", 5),
    Input("f.item", "INT32", "item", "value", 9),
    Input("f.price", "FP32", "item", "value", 0),
    Input("f.tags.values", "INT32", "item", "values", 4),
    Input("f.tags.offsets", "INT64", "item", "offsets", 0),
    Input("f.tags.weights", "FP32", "item", "weights", 0),
    Input("h.seen.item", "INT32", "h.seen", "value", 9),
]
GOOD: dict[str, list[float]] = {
    "f.user": [4],
    "f.item": [8, 0],
    "f.price": [1, 2.5],
    "f.tags.values": [3, 0, 1],
    "f.tags.offsets": [0, 3, 3],
    "f.tags.weights": [1, 0.5, 2],
    "h.seen.item": [],
}


def body(**change: Any) -> bytes:
    data = {**GOOD, **{name.replace("__", "."): values for name, values in change.items()}}
    datatype = {entry.name: entry.datatype for entry in INPUTS}
    inputs = [
        {"name": name, "shape": [len(values)], "datatype": datatype[name], "data": values}
        for name, values in data.items()
        if values is not None
    ]
    return orjson.dumps({"inputs": inputs, "parameters": {"any": "thing"}})


def catch_error(content: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_infer_request(content, INPUTS)
    return caught.value


def test_tensors_come_in_the_types_of_the_program() -> None:
    call = decode_infer_request(body(), INPUTS)
    tensors = call.tensors
    assert (call.id, call.outputs) == (None, {"score": False})
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {entry.name: entry.dtype for entry in INPUTS}
    assert tensors["f.price"].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"f__item": [9, 0]}, "inputs.f.item", "ids from 0 to 9; expected ids from 0 to 8"),
        ({"f__item": [-1, 0]}, "inputs.f.item", "ids from -1 to 0"),
        ({"f__item": [1.0, 2]}, "inputs.f.item", "numbers with a point; expected whole numbers (INT32)"),
        ({"f__item": [2**40, 2]}, "inputs.f.item", "too large; expected INT32"),
        ({"f__price": [1e300, 2]}, "inputs.f.price", "too large; expected FP32"),
        ({"f__item": [1]}, "inputs.f.price", "2 entries; expected 1, as in f.item"),
        ({"f__user": [1, 1]}, "inputs.f.user", "2 entries; expected 1, for the one user"),
        ({"f__tags__values": [3]}, "inputs.f.tags.values", "1 values; expected 3, where the offsets end"),
        ({"f__tags__weights": [3]}, "inputs.f.tags.weights", "1 values; expected 3"),
        ({"f__tags__offsets": [0, 4, 3]}, "inputs.f.tags.offsets", "offsets that do not increase from 0"),
        ({"f__tags__offsets": [1, 2, 3]}, "inputs.f.tags.offsets", "offsets that do not increase from 0"),
        ({"f__tags__offsets": []}, "inputs.f.tags.offsets", "offsets that do not increase from 0"),
        ({"f__tags__offsets": [0, 3]}, "inputs.f.tags.offsets", "1 entries; expected 2"),
        ({"f__item": None, "h__seen__item": None}, "inputs", "no f.item, no h.seen.item"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(change: dict[str, Any], where: str, message: str) -> None:
    error = catch_error(body(**change))
    assert (error.status, error.where) == (422, where)
    assert message in str(error)


def test_no_candidates_and_too_many() -> None:
    none = {"f__item": [], "f__price": [], "f__tags__values": [], "f__tags__weights": [], "f__tags__offsets": [0]}
    assert catch_error(body(**none)).found == "no candidates"
    inputs = INPUTS[:2]
    many = [
        {"name": "f.user", "shape": [1], "datatype": "INT32", "data": [1]},
        {"name": "f.item", "shape": [100_001], "datatype": "INT32", "data": [0] * 100_001},
    ]
    with pytest.raises(RequestError, match="100,001 candidates") as caught:
        decode_infer_request(orjson.dumps({"inputs": many}), inputs)
    assert caught.value.status == 413


def test_more_pairs_than_fit_into_memory() -> None:
    inputs = [INPUTS[1], INPUTS[6]]
    many = [
        {"name": "f.item", "shape": [2_001], "datatype": "INT32", "data": [0] * 2_001},
        {"name": "h.seen.item", "shape": [1_000], "datatype": "INT32", "data": [0] * 1_000},
    ]
    with pytest.raises(
        RequestError, match="2,001,000 pairs of a candidate and a past event; expected at most"
    ) as caught:
        decode_infer_request(orjson.dumps({"inputs": many}), inputs)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"name": "f.itm"}, "inputs.f.itm", "an unknown input"),
        ({"name": "f.user"}, "inputs.f.user", "sent twice"),
        ({"datatype": "INT64"}, "inputs.f.item", "datatype 'INT64'; expected INT32"),
        ({"shape": [3]}, "inputs.f.item", "shape [3] with 2 values"),
        ({"shape": [2, 1]}, "inputs.f.item", "shape [2, 1] with 2 values"),
        ({"shape": []}, "inputs.f.item", "shape [] with 2 values"),
        ({"shape": [-1]}, "inputs.f.item", "shape [-1] with 2 values"),
        ({"datatype": "BOOL", "data": [True, False]}, "inputs[1].data[0]", "a value of type true or false"),
        ({"datatype": "FP64"}, "inputs.f.item", "datatype 'FP64'; expected INT32"),
        ({"data": [[1], [2]]}, "inputs[1].data[0]", "a value of type list"),
        ({"data": [None, 1]}, "inputs[1].data[0]", "a value of type null"),
    ],
)
def test_tensors_of_another_form_are_refused(change: dict[str, Any], where: str, message: str) -> None:
    content = orjson.loads(body())
    content["inputs"][1].update(change)
    error = catch_error(orjson.dumps(content))
    assert (error.status, error.where) == (422, where)
    assert message in str(error)


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1e999", "9" * 40, "9" * 400, "9" * 5000])
def test_a_number_beyond_its_datatype_is_refused_with_the_name_of_its_input(number: str) -> None:
    for name, text in (("f.price", "2.5"), ("f.tags.weights", "0.5")):
        content = body().replace(f",{text}".encode(), f",{number}".encode())
        assert content != body()
        error = catch_error(content)
        assert (error.status, error.where) == (422, f"inputs.{name}")
        assert error.found == "a number that is too large"


def test_rows_have_the_width_of_the_input_and_may_be_flat() -> None:
    inputs = [Input("f.vector", "FP32", "item", "value", 0, 2)]

    def decode(data: list[Any]) -> Any:
        tensor = {"name": "f.vector", "shape": [2, 2], "datatype": "FP32", "data": data}
        return decode_infer_request(orjson.dumps({"inputs": [tensor]}), inputs).tensors["f.vector"].tolist()

    assert decode([1, 2, 3, 4]) == decode([[1, 2], [3, 4]]) == [[1, 2], [3, 4]]
    with pytest.raises(RequestError, match=r"inputs\[0\].data\[0\]: a row of 1 numbers; expected 2") as caught:
        decode([[1], [2, 3, 4]])
    assert caught.value.status == 422


def test_other_outputs_and_no_json() -> None:
    error = catch_error(orjson.dumps({**orjson.loads(body()), "outputs": [{"name": "logit"}]}))
    assert "the unknown output 'logit'; expected score" in str(error)
    assert catch_error(b"{").status == 400
    assert catch_error(b"{}").where == "inputs"


def test_answers_and_metadata() -> None:
    import numpy as np

    answer = orjson.loads(encode_infer_response("m", "1", "x", [np.array([0.5, 0.25], np.float32)]).content)
    assert answer["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [2], "data": [0.5, 0.25]}]
    assert (answer["id"], answer["model_version"]) == ("x", "1")
    assert [entry["shape"] for entry in build_metadata("m", "1", INPUTS)["inputs"]] == [[1], *[[-1]] * 6]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"inputs": [' + b'{"name": "x", "shape": [], "datatype": "y"},' * 4_000 + b"]}", "12,001 names"),
        (b'{"inputs": [{"name": "f.item", "data": [' + b"[1]," * 200_000 + b"]}]}", "200,002 lists"),
        (b'{"inputs": [{"name": "f.item", "shape": [' + b"1," * 2_000_001 + b"]}]}", "2,000,002 values"),
    ],
)
def test_a_call_that_costs_too_much_is_refused_before_it_is_decoded(content: bytes, problem: str) -> None:
    error = catch_error(content)
    assert (error.status, error.where, error.found) == (413, "body", problem)
    assert "binary data" in error.do


def test_marks_inside_texts_are_not_counted() -> None:
    name = "[,:" * 700_000
    error = catch_error(orjson.dumps({"inputs": [{"name": name, "shape": [1], "datatype": "FP32", "data": [1]}]}))
    assert (error.status, error.found) == (422, "an unknown input")
    assert len(str(error)) < 2_000


@pytest.mark.parametrize("other", [b"[]", b'"x"', b"7", b'{"name": 7}', b"[" * 9_000, b"x"])
def test_a_number_that_is_too_large_beside_another_fault(other: bytes) -> None:
    content = b'{"inputs": [{"name": "f.item", "shape": [1], "datatype": "INT32", "data": [-1e400]}, %b]}'
    error = catch_error(content % other)
    assert (error.status, error.where, error.found) == (422, "inputs[0].data", "a number that is too large")


def test_positions_of_a_program_that_updates_states() -> None:
    """Positions outside the events would be read past their end."""
    inputs = [
        Input("h.seen.item", "INT32", "h.seen", "value", 9),
        Input("s.seen", "FP32", "s.seen", "value", 0, 2),
        Input("p.seen", "INT64", "s.seen", "positions", 0),
    ]
    good = {"h.seen.item": ([3], [1, 2, 3]), "s.seen": ([2, 2], [0, 0, 0, 0]), "p.seen": ([2, 2], [0, 1, 2, -1])}

    def decode(**change: Any) -> Any:
        data = {**good, **{name.replace("__", "."): own for name, own in change.items()}}
        datatypes = {entry.name: entry.datatype for entry in inputs}
        tensors = [
            {"name": name, "shape": shape, "datatype": datatypes[name], "data": values}
            for name, (shape, values) in data.items()
        ]
        return decode_infer_request(orjson.dumps({"inputs": tensors}), inputs, ["state"]).tensors

    assert decode()["p.seen"].tolist() == [[0, 1], [2, -1]]
    faults = {
        "positions from 0 to 3; expected positions from 0 to 2": {"p__seen": ([2, 2], [0, 1, 2, 3])},
        "positions from -2 to 1": {"p__seen": ([2, 1], [-2, 1])},
        "a position after -1": {"p__seen": ([2, 2], [0, 1, -1, 2])},
        "shape .4. with 4 values": {"p__seen": ([4], [0, 1, 2, -1])},
        "1 entries; expected 2": {"p__seen": ([1, 2], [0, 1])},
        "positions in no events": {"h__seen__item": ([0], [])},
    }
    for message, change in faults.items():
        with pytest.raises(RequestError, match=message):
            decode(**change)
