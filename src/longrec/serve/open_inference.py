"""Open Inference Protocol (version 2, REST): the ONNX model's own named tensors.

Inputs are validated before they run. They come as JSON or as binary data, and outputs return as either.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import RequestError, nearest, quote
from longrec.exporting.inputs import OUTPUT, Input, Output
from longrec.serve.binary_tensors import SIZE, BinaryData, split_body, wants_binary, write_binary
from longrec.serve.infer_messages import InferAnswer, InferCall, InferInput, InferRequest
from longrec.serve.request_json import MAX_CANDIDATES, MAX_NAMES, build_json_error, build_validation_error, count_marks

POSITIONS = 2_000_000
"""Largest number of pairs of a candidate and a past event per call, since all are in memory at once."""

MAX_LISTS = 200_000
"""Largest number of lists in the JSON of a call: rows of the candidates, and of the events of histories."""
_LIMITS = ((":", MAX_NAMES, "names"), ("[", MAX_LISTS, "lists"), (",", POSITIONS, "values"))
"""Marks of JSON, how many of them a call may have, and what they count."""
_DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32"}


class _Named(msgspec.Struct):
    name: str


class _Names(msgspec.Struct):
    inputs: list[_Named]


_DECODER, _NAMES = msgspec.json.Decoder(InferRequest), msgspec.json.Decoder(_Names)
_FOREIGN = ("shared_memory_region", "classification")
"""Parameters of extensions that are not supported, whose answer would not be in the response."""


def decode_infer_request(
    body: bytes, inputs: Sequence[Input], outputs: Sequence[str] = (OUTPUT,), json_length: str | None = None
) -> InferCall:
    """Decode a request and validate its tensors.

    Args:
        outputs: names of the outputs of the program.
        json_length: the header with the length of the JSON, for binary data behind it.

    Raises:
        RequestError: 400 if the body is not JSON or its binary data has another length, 413 if there are too many
            candidates or values, 422 if the tensors do not fit the ONNX model.
    """
    content, data = split_body(body, json_length)
    _check_size(content)
    try:
        request = _DECODER.decode(content)
    except msgspec.ValidationError as error:
        raise _build_validation_error(error, content) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise build_json_error(error) from None
    wanted = _select_outputs(request, outputs)
    binary = BinaryData(data)
    tensors = _collect_tensors(request.inputs, inputs, binary)
    binary.check_end()
    check_tensors(tensors, inputs)
    return InferCall(request.id, tensors, wanted)


def _check_size(content: bytes) -> None:
    """Refuse JSON that costs more to decode than a call may."""
    if all(content.count(mark.encode()) <= limit for mark, limit, _ in _LIMITS):
        return
    counts = count_marks(content, "".join(mark for mark, _, _ in _LIMITS))
    for count, (_, limit, what) in zip(counts, _LIMITS):
        if count > limit:
            raise RequestError("body", f"{count:,} {what}", f"at most {limit:,}", "send tensors as binary data", 413)


def _build_validation_error(error: msgspec.ValidationError, content: bytes) -> RequestError:
    """Return the error of an invalid field. A number beyond 64 bits is reported with the name of its input."""
    plain = build_validation_error(error, InferRequest.__struct_fields__)
    match = re.match(r"inputs\[(\d+)\]\.data", plain.where)
    if match is None or "out of range" not in plain.found:
        return plain
    where = match[0]
    with contextlib.suppress(msgspec.DecodeError, RecursionError):  # of another input, or of what is behind the number
        where = f"inputs.{_NAMES.decode(content).inputs[int(match[1])].name}"
    return RequestError(where, "a number that is too large", "a number of its datatype", status=422)


def _select_outputs(request: InferRequest, outputs: Sequence[str]) -> dict[str, bool]:
    """Return the requested outputs by name, with true for binary data."""
    general = request.parameters or {}
    if not request.outputs:
        return {name: wants_binary({}, general, "") for name in outputs}
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        where = f"outputs.{output.name}"
        if output.name not in outputs:
            raise RequestError("outputs", f"the unknown output {output.name!r}", ", ".join(outputs), status=422)
        if output.name in wanted:
            raise RequestError(where, "requested twice", "each output once", status=422)
        parameters = output.parameters or {}
        _check_parameters(parameters, where)
        wanted[output.name] = wants_binary(parameters, general, where)
    return wanted


def _check_parameters(parameters: Mapping[str, Any], where: str) -> None:
    for name in _FOREIGN:
        if name in parameters:
            do = "send and receive tensors as JSON or as binary data"
            raise RequestError(where, f"the parameter {name}", "no extension but binary_tensor_data", do, 422)


def _collect_tensors(
    received: Sequence[InferInput], inputs: Sequence[Input], binary: BinaryData
) -> dict[str, NDArray[Any]]:
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
        parameters = tensor.parameters or {}
        _check_parameters(parameters, where)
        if SIZE in parameters:
            if tensor.data is not msgspec.UNSET:
                raise RequestError(where, f"data and {SIZE}", "one of them", status=422)
            array = binary.read(parameters[SIZE], entry.dtype, where)
        elif tensor.data is msgspec.UNSET:
            raise RequestError(f"{where}.data", "nothing", f"the numbers, or {SIZE} in parameters", status=422)
        else:
            array = _to_array(tensor.data, tensor, entry, index)
        tensors[tensor.name] = _shape(array, tensor.shape, entry, where)
    return tensors


def _to_array(data: list[Any], tensor: InferInput, entry: Input, index: int) -> NDArray[Any]:
    """Return the numbers of JSON in one dimension."""
    where, nested = f"inputs.{tensor.name}", [at for at, value in enumerate(data) if isinstance(value, list)]
    if nested and not entry.width:
        raise RequestError(f"inputs[{index}].data[{nested[0]}]", "a value of type list", "a number", status=422)
    if nested and len(nested) < len(data):
        raise RequestError(f"{where}.data", "numbers beside lists", "rows, or the numbers of all rows", status=422)
    flat: list[Any] = [number for row in data for number in row] if nested else data
    if nested and len(flat) == len(data) * entry.width:
        for at, row in enumerate(data):
            if len(row) != entry.width:
                problem = f"a row of {len(row)} numbers"
                raise RequestError(f"inputs[{index}].data[{at}]", problem, f"{entry.width}", status=422)
    if entry.dtype.kind == "i" and any(isinstance(value, float) for value in flat):
        raise RequestError(where, "numbers with a point", f"whole numbers ({entry.datatype})", status=422)
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, entry.dtype)
    except OverflowError:
        raise RequestError(where, "a number that is too large", entry.datatype, status=422) from None


def _shape(array: NDArray[Any], shape: list[int], entry: Input, where: str) -> NDArray[Any]:
    """Return an array in the shape that the request says, which the input must allow."""
    wide = [entry.width] if entry.width else []
    if entry.component == "positions":
        if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] != len(array):
            problem = f"shape {quote(shape)} with {len(array):,} values"
            raise RequestError(where, problem, "[-1, -1], as many values as it says", status=422)
        return array.reshape(shape)
    if not shape or shape[1:] != wide or shape[0] * (entry.width or 1) != len(array):
        problem = f"shape {quote(shape)} with {len(array):,} values"
        expected = f"[-1, {entry.width}], as many values as it says" if wide else "one dimension, as long as the data"
        raise RequestError(where, problem, expected, status=422)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        # JSON has neither NaN nor infinity, so there it is a number beyond float32.
        problem = "NaN" if np.isnan(array).any() else "a number that is too large"
        raise RequestError(where, problem, f"{entry.datatype}, finite", status=422)
    return array.reshape(shape)


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
        if entry.component == "positions":
            _check_positions(array, lengths[f"h.{entry.name.removeprefix('p.')}"][0], where)
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


def _check_positions(positions_BP: NDArray[Any], events: int, where: str) -> None:
    """Refuse positions that are outside the events, or follow the end of a row."""
    if not events:
        raise RequestError(where, "positions in no events", "one event or more", status=422)
    if not -1 <= positions_BP.min() <= positions_BP.max() < events:
        problem = f"positions from {positions_BP.min()} to {positions_BP.max()}"
        raise RequestError(where, problem, f"positions from 0 to {events - 1}, or -1", status=422)
    if (np.diff((positions_BP >= 0).astype(np.int8), axis=1) > 0).any():
        raise RequestError(where, "a position after -1", "-1 after the last position of a row only", status=422)


def encode_infer_response(
    model: str,
    version: str,
    identity: str | None,
    values: Sequence[NDArray[Any]],
    wanted: Mapping[str, bool] = MappingProxyType({OUTPUT: False}),
) -> InferAnswer:
    """Encode the response of the protocol.

    Args:
        values: values of the outputs, in the order of ``wanted``.
        wanted: names of the outputs, with true for binary data.
    """
    outputs: list[dict[str, Any]] = []
    for (name, is_binary), array in zip(wanted.items(), values):
        output = {"name": name, "datatype": _DATATYPES[array.dtype], "shape": list(array.shape)}
        content = {"parameters": {SIZE: array.nbytes}} if is_binary else {"data": np.ravel(array)}
        outputs.append({**output, **content})
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if identity is not None:
        answer["id"] = identity
    encoded = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(wanted.values()):
        return InferAnswer(encoded)
    binary = write_binary([array for array, is_binary in zip(values, wanted.values()) if is_binary])
    return InferAnswer(encoded + binary, len(encoded))


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
