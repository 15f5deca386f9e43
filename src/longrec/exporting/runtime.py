"""Inference with onnxruntime on one thread, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.inputs import Output, ProgramFacts, rename_input
from longrec.onnx_import import import_onnxruntime
from longrec.resources import require_memory

_ERRORS_ONLY = 3


class Program:
    """An ONNX model with named inputs and outputs. Weights in a file beside it are mapped into memory, not copied.

    Attributes:
        names: inputs that the ONNX model reads. Features that it does not use are not among them. Former names of
            computed columns are replaced by their present names.
        outputs: names of the outputs, see ``exporting/programs.py``.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime = import_onnxruntime()
        require_memory(path.parent.glob(f"{path.name}*"), "a program")
        options = onnxruntime.SessionOptions()
        # A server runs one process per core, and threads inside would compete for cores.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  onnxruntime raises its own classes, which share no base
            raise BundleError(
                str(path), f"onnxruntime cannot load it ({_get_first_line(error)})", "a program that export wrote"
            ) from None
        self._own_names = {rename_input(entry.name): entry.name for entry in self._session.get_inputs()}
        self.names = frozenset(self._own_names)
        self.outputs = tuple(entry.name for entry in self._session.get_outputs())

    def describe_outputs(self) -> list[Output]:
        """Return names, types and shapes of the outputs."""
        return [
            Output(
                entry.name,
                "INT32" if entry.type == "tensor(int32)" else "FP32",
                [size if isinstance(size, int) else -1 for size in entry.shape],
            )
            for entry in self._session.get_outputs()
        ]

    def run(self, tensors: Mapping[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
        """Run the ONNX model and return an output.

        Args:
            tensors: every input of ``names``. Others are ignored.
            output: name of the output. Default the first.
        """
        return self.run_outputs(tensors, [self.outputs[0] if output is None else output])[0]

    def run_outputs(self, tensors: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Run the ONNX model and return several outputs by their names."""
        own = self._own_names
        values: list[NDArray[Any]] = self._session.run(
            list(outputs), {own[name]: tensor for name, tensor in tensors.items() if name in own}
        )
        return values


def open_programs(folder: Path, programs: Mapping[str, ProgramFacts]) -> dict[str, Program]:
    """Open the programs of a bundle. Those that read one file of weights share it in memory."""
    return {name: Program(folder / facts.file) for name, facts in programs.items()}


def _get_first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
