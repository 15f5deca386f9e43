"""Files of the programs of a bundle: several programs share one file of weights.

A weight that several programs read is written once. onnxruntime maps the file into memory, so that its pages are in
memory once too, whichever programs and worker processes read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from onnxscript import ir
from torch.onnx import ONNXProgram

from longrec.exporting.bundle import PROGRAM, WEIGHTS

_INLINE = 1_500_000_000
"""Bytes of weights above which they are written beside the only program: a protobuf message is limited to 2 GiB."""
_SMALL = 4_096
"""Bytes of a weight below which each program has its own copy, so that onnxruntime knows its value when it loads."""
_ALIGNMENT = 4_096
"""Weights start at the pages of memory."""


def write_program(program: ONNXProgram, path: Path) -> None:
    """Write one program with its weights, or with a file beside it if they are large."""
    tensors = [value.const_value for value in program.model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    program.save(str(path), external_data=weights > _INLINE)


def write_programs(programs: Mapping[str, ONNXProgram], folder: Path) -> dict[str, str]:
    """Write programs into a folder: one file each, and one file with the weights of all.

    Returns:
        The name of the file of each program.
    """
    if len(programs) == 1:
        write_program(next(iter(programs.values())), folder / PROGRAM)
        return dict.fromkeys(programs, PROGRAM)
    files = {name: f"{name}.onnx" for name in programs}
    with (folder / WEIGHTS).open("xb") as file:
        writer = _WeightWriter(file)
        for name, program in programs.items():
            for value in program.model.graph.initializers.values():
                value.const_value = writer.write(value)
            ir.save(program.model, folder / files[name])
    return files


class _WeightWriter:
    """Writer of weights, which writes equal ones once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def write(self, value: ir.Value) -> Any:
        """Write a weight and return a reference to it. A small one is returned itself."""
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes < _SMALL:
            return tensor
        array: NDArray[Any] = np.ascontiguousarray(tensor.numpy())
        content = array.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(content).digest()
        if digest not in self._offsets:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._file.write(content)
        shape, name = ir.Shape(array.shape), value.name or ""
        return ir.ExternalTensor(WEIGHTS, self._offsets[digest], tensor.nbytes, tensor.dtype, shape=shape, name=name)
