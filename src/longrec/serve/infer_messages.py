"""Requests and responses of the Open Inference Protocol, as JSON and as decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.typing import NDArray

from longrec.serve.binary_tensors import LENGTH_HEADER

_Number = int | float


class InferInput(msgspec.Struct):
    """Input tensor of a request.

    Attributes:
        name: name of the input, as the metadata lists it.
        shape: lengths of the dimensions.
        datatype: type of the numbers, as the metadata lists it.
        data: the numbers row by row, in one list or in rows. Left out for binary data.
        parameters: ``binary_data_size``, the size of binary data in bytes.
    """

    name: str
    shape: list[int]
    datatype: str
    data: list[_Number | list[_Number]] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class InferOutput(msgspec.Struct):
    """Requested output.

    Attributes:
        name: name of the output, as the metadata lists it.
        parameters: ``binary_data``, true for binary data in the response.
    """

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """Request of the protocol, which allows additional keys.

    Attributes:
        inputs: all inputs of the program, in any order.
        id: identity of the request, repeated in the response.
        outputs: outputs to return, in this order. Default all.
        parameters: ``binary_data_output``, true for binary data of all outputs without a choice of their own.
    """

    inputs: list[InferInput]
    id: str | None = None
    outputs: list[InferOutput] | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class InferCall:
    """Decoded request.

    Attributes:
        tensors: inputs by name.
        outputs: names of the outputs to return, with true for binary data.
    """

    id: str | None
    tensors: dict[str, NDArray[Any]]
    outputs: dict[str, bool]


@dataclass(frozen=True)
class InferAnswer:
    """Encoded response.

    Attributes:
        content: the JSON, and the binary data behind it.
        json_length: length of the JSON in bytes. None without binary data.
    """

    content: bytes
    json_length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that describe the content."""
        if self.json_length is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/octet-stream", LENGTH_HEADER: str(self.json_length)}
