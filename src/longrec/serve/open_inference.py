"""Open Inference Protocol (version 2, REST): the ONNX model's own named inputs, validated before they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import RequestError, nearest
from longrec.exporting.inputs import OUTPUT, Input, Output
from longrec.serve.request_json import MAX_CANDIDATES, build_json_error, build_validation_error

POSITIONS = 2_000_000
"""Largest number of pairs of a candidate and a past event per call, since all are in memory at once."""


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[int | float | list[int | float]]
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """Request of the protocol, which allows additional keys."""

    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(InferRequest)


def decode_infer_request(
    body: bytes, inputs: Sequence[Input], output: str = OUTPUT
) -> tuple[str | None, dict[str, NDArray[Any]]]:
    """Decode a request and return its id and its validated tensors.

    Args:
        output: name of the output of the program.

    Raises:
        RequestError: 400 if the body is not JSON, 413 if there are too many candidates, 422 if the tensors do not fit
            the ONNX model.
    """
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise build_validation_error(error, InferRequest.__struct_fields__) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise build_json_error(error) from None
    for wanted in request.outputs:
        if wanted.name != output:
            raise RequestError("outputs", f"the unknown output {wanted.name!r}", output, status=422)
    tensors = _collect_tensors(request.inputs, inputs)
    check_tensors(tensors, inputs)
    return request.id, tensors


def _collect_tensors(received: Sequence[_Tensor], inputs: Sequence[Input]) -> dict[str, NDArray[Any]]:
    expected = {entry.name: entry for entry in inputs}
    tensors: dict[str, NDArray[Any]] = {}
    for index, tensor in enumerate(received):
        where = f"inputs.{tensor.name}"
        if tensor.name not in expected:
            near = nearest(tensor.name, expected)
            raise RequestError(
                where, "an unknown input", ", ".join(expected), f"did you mean {near!r}?" if near else "", 422
            )
        if tensor.name in tensors:
            raise RequestError(where, "sent twice", "each input once", status=422)
        entry = expected[tensor.name]
        if tensor.datatype != entry.datatype:
            raise RequestError(where, f"datatype {tensor.datatype!r}", entry.datatype, status=422)
        tensors[tensor.name] = _to_array(tensor, entry, where, index)
    return tensors


def _to_array(tensor: _Tensor, entry: Input, where: str, index: int) -> NDArray[Any]:
    data, nested = tensor.data, [at for at, value in enumerate(tensor.data) if isinstance(value, list)]
    if nested and not entry.width:
        raise RequestError(f"inputs[{index}].data[{nested[0]}]", "a value of type list", "a number", status=422)
    if nested and len(nested) < len(data):
        raise RequestError(f"{where}.data", "numbers beside lists", "rows, or the numbers of all rows", status=422)
    flat: list[Any] = [number for row in data for number in row] if nested else data  # type: ignore[union-attr]
    wide = [entry.width] if entry.width else []
    if tensor.shape[1:] != wide or not tensor.shape or tensor.shape[0] * (entry.width or 1) != len(flat):
        problem = f"shape {tensor.shape} with {len(flat)} values"
        shape = f"[-1, {entry.width}], as many values as it says" if wide else "one dimension, as long as the data"
        raise RequestError(where, problem, shape, status=422)
    if entry.dtype.kind == "i" and any(isinstance(value, float) for value in flat):
        raise RequestError(where, "numbers with a point", f"whole numbers ({entry.datatype})", status=422)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, entry.dtype)
    except OverflowError:
        raise RequestError(where, "a number that is too large", entry.datatype, status=422) from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(where, "a number that is too large", entry.datatype, status=422)
    return array.reshape(tensor.shape)


def check_tensors(tensors: dict[str, NDArray[Any]], inputs: Sequence[Input]) -> None:
    """Refuse inconsistent tensors, with which onnxruntime would read past a table or return nonsense.

    Raises:
        RequestError: if an input is missing, lengths differ, ids are outside their table, or offsets decrease.
    """
    missing = [entry.name for entry in inputs if entry.name not in tensors]
    if missing:
        raise RequestError("inputs", f"no {', no '.join(missing)}", "every input of the program", status=422)
    lengths: dict[str, tuple[int, str]] = {"user": (1, "")}
    for entry in inputs:
        array, where = tensors[entry.name], f"inputs.{entry.name}"
        if entry.rows and len(array) and not 0 <= array.min() <= array.max() < entry.rows:
            raise RequestError(
                where, f"ids from {array.min()} to {array.max()}", f"ids from 0 to {entry.rows - 1}", status=422
            )
        if entry.component in ("values", "weights"):
            ends = tensors[f"{entry.field}.offsets"]
            if len(ends) and ends[-1] != len(array):
                raise RequestError(where, f"{len(array)} values", f"{ends[-1]}, where the offsets end", status=422)
            continue
        size = len(array)
        if entry.component == "offsets":
            size -= 1
            if size < 0 or array[0] != 0 or (np.diff(array) < 0).any():
                raise RequestError(
                    where, "offsets that do not increase from 0", "0, then the end of each row", status=422
                )
        expected_size, first = lengths.setdefault(entry.group, (size, entry.name))
        if size != expected_size:
            expected = f"{expected_size}, as in {first}" if first else "1, for the one user"
            raise RequestError(where, f"{size} entries", expected, status=422)
    if all(entry.group != "item" for entry in inputs):
        return  # a program of requests alone
    count = lengths["item"][0]
    positions = count * max((size for group, (size, _) in lengths.items() if group.startswith("h.")), default=0)
    if not count:
        raise RequestError("inputs", "no candidates", f"1 to {MAX_CANDIDATES:,}", status=422)
    if count > MAX_CANDIDATES:
        raise RequestError(
            "inputs", f"{count:,} candidates", f"at most {MAX_CANDIDATES:,}", "split it into several requests", 413
        )
    if positions > POSITIONS:
        message = f"{positions:,} pairs of a candidate and a past event"
        raise RequestError("inputs", message, f"at most {POSITIONS:,}", "split it into several requests", 413)


def encode_infer_response(
    model: str, version: str, identity: str | None, values: NDArray[np.float32], name: str = OUTPUT
) -> bytes:
    """Encode the response of the protocol: one output with its values, in one dimension."""
    output = {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": np.ravel(values)}
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [output]}
    if identity is not None:
        answer["id"] = identity
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def build_metadata(
    model: str, version: str, inputs: Sequence[Input], outputs: Sequence[Output] = (Output(OUTPUT, "FP32", [-1]),)
) -> dict[str, Any]:
    """Return the metadata of a model in the format of the protocol."""
    return {
        "name": model,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": entry.name, "datatype": entry.datatype, "shape": entry.shape} for entry in inputs],
        "outputs": [{"name": entry.name, "datatype": entry.datatype, "shape": entry.shape} for entry in outputs],
    }
