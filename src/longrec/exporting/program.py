"""Tracing of a trained model into an ONNX model: one user, C candidates, histories of T events, all lengths dynamic.

Only this file, ``programs.py``, ``weights.py``, ``offline.py`` and ``parity.py`` of this package need torch.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim
from torch.onnx import ONNXProgram

from longrec.errors import BundleError
from longrec.exporting.inputs import CODES_OUTPUT, OUTPUT, TASK_OUTPUT, TOKEN_OUTPUT, Input, make_random_tensors
from longrec.exporting.runtime import Program
from longrec.exporting.weights import write_program
from longrec.features.batch import Batch, Column, HistoryBatch, Jagged, Layout
from longrec.models.core.kinds import Encoder, Ranker
from longrec.models.core.multi_task import LABEL
from longrec.models.core.translations import list_translations


class ProgramModule(nn.Module):
    """A part of a model as a function of flat tensors, in the order of ``inputs``.

    Attributes:
        outputs: names of the outputs.
    """

    outputs: tuple[str, ...] = (OUTPUT,)

    def __init__(self, model: nn.Module, inputs: Sequence[Input]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    @property
    def subject(self) -> str:
        """Name of the program in messages."""
        return f"model {type(self.model).__name__}"

    @property
    def compared(self) -> list[str]:
        """Names of the outputs that an exported program must return like torch. Default the first."""
        return [self.outputs[0]]

    def capture(self, arguments: Sequence[Tensor]) -> nn.Module:
        """Return the module that the exporter traces. By default this one."""
        return self

    def make_random_tensors(self, candidates: int, events: int | Sequence[int], seed: int) -> dict[str, NDArray[Any]]:
        """Make valid random inputs, see ``inputs.make_random_tensors``."""
        return make_random_tensors(self.inputs, candidates, events, seed)

    def compute_expected(self, tensors: Mapping[str, NDArray[Any]], program: Program, where: str) -> list[NDArray[Any]]:
        """Return these outputs for flat tensors by torch.

        Args:
            program: the exported program, of a module whose output depends on its other outputs.
            where: name of the check, for messages.
        """
        return run_torch(self, tensors)[: len(self.compared)]


class SharedModel(ProgramModule):
    """A ranker or an encoder.

    Attributes:
        outputs: probabilities ``[C]`` of a ranker, then of each of several tasks, or vectors ``[C, W]`` of an encoder,
            then its codes.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Input]) -> None:
        super().__init__(model, inputs)
        if isinstance(model, Ranker) and model.targets:
            self.outputs = (OUTPUT, *(f"{TASK_OUTPUT}{name}" for name in (LABEL, *model.targets)))
        if isinstance(model, Encoder):
            self.outputs = (TOKEN_OUTPUT,) if model.codebooks() is None else (TOKEN_OUTPUT, CODES_OUTPUT)

    @property
    def compared(self) -> list[str]:
        """The probabilities of a ranker, or the vectors of an encoder."""
        return [self.outputs[0]] if isinstance(self.model, Encoder) else list(self.outputs)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return probabilities of a ranker (and of its tasks), or vectors (and codes) of an encoder."""
        batch = build_shared_batch(self.inputs, tensors)
        if isinstance(self.model, Ranker) and self.model.targets:
            logits_CK = self.model.logits(batch)
            return torch.sigmoid(self.model.ranking_logit(logits_CK)), *torch.sigmoid(logits_CK).unbind(1)
        if not isinstance(self.model, Encoder):
            logits: Tensor = self.model(batch)
            return torch.sigmoid(logits)
        vectors = self.model.encode(batch).float()
        return vectors if len(self.outputs) == 1 else (vectors, self.model.codes(batch).int())


def build_shared_batch(inputs: Sequence[Input], tensors: Sequence[Tensor]) -> Batch:
    """Build the shared batch of one user and C candidates (none without their inputs) from flat tensors."""
    by_name = {entry.name: tensor for entry, tensor in zip(inputs, tensors)}
    starts = {entry.name: by_name[entry.name] for entry in inputs if entry.name.startswith("s.")}
    columns, sizes = build_columns([entry for entry in inputs if entry.name not in starts], by_name)
    histories = {
        # [0, T] as a product: a tensor of a traced length would end the tracing
        group.removeprefix("h."): HistoryBatch(
            own, torch.arange(2) * sizes[group], start=starts.get(f"s.{group.removeprefix('h.')}")
        )
        for group, own in columns.items()
        if group not in ("user", "item")
    }
    return Batch(Layout.shared(sizes.get("item", 0)), columns["user"], columns["item"], histories)


def build_retrieval_batch(inputs: Sequence[Input], tensors: Sequence[Tensor]) -> tuple[Batch, Mapping[str, Column]]:
    """Build the shared batch of one request, and the columns of items, from flat tensors.

    The batch has no columns of candidates, because items belong to no request.
    """
    shared = build_shared_batch(inputs, tensors)
    return replace(shared, layout=Layout.shared(1), candidates={}), shared.candidates


def build_columns(
    inputs: Sequence[Input], by_name: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Column]], dict[str, int]]:
    """Build the columns of each group of inputs from flat tensors, and return them with the sizes of the groups."""
    columns: dict[str, dict[str, Column]] = {"user": {}, "item": {}}
    sizes: dict[str, int] = {}
    for entry in inputs:
        if entry.component not in ("value", "offsets"):
            continue
        column: Column = by_name[entry.name]
        size = by_name[entry.name].shape[0]
        if entry.component == "offsets":
            values, weights = by_name[f"{entry.field}.values"], by_name.get(f"{entry.field}.weights")
            column, size = Jagged(values, by_name[entry.name], weights), size - 1
        sizes.setdefault(entry.group, size)
        prefix = "f." if entry.name.startswith("f.") else f"{entry.group}."
        columns.setdefault(entry.group, {})[entry.field.removeprefix(prefix)] = column
    return columns, sizes


def trace(model: nn.Module, inputs: Sequence[Input], path: Path) -> None:
    """Trace a ranker or an encoder and write its program.

    Raises:
        BundleError: if the schema has no item features, or the model cannot be traced.
    """
    if not any(entry.group == "item" for entry in inputs):
        raise BundleError("schema", "no feature of the item", "a feature with side: item, so that candidates differ")
    write_program(trace_module(SharedModel(model, inputs).eval()), path)


def trace_module(module: ProgramModule) -> ONNXProgram:
    """Trace one program.

    Raises:
        BundleError: if it cannot be traced.
    """
    inputs = module.inputs
    # All lengths differ, so that no two dynamic dimensions are merged. A length of 1 would become fixed.
    groups = list(dict.fromkeys(entry.group for entry in inputs if entry.group.startswith("h.")))
    example = module.make_random_tensors(5, [7 + 2 * number for number in range(len(groups))], seed=1)
    arguments = tuple(torch.from_numpy(example[entry.name]) for entry in inputs)
    dims = {"item": Dim("C"), **{group: Dim(f"T{number}") for number, group in enumerate(groups)}}
    dims |= {entry.group: Dim("B") for entry in inputs if entry.group.startswith("s.")}
    dims |= {"memory": Dim("M"), "prefix": Dim("W")}
    shapes = tuple(_list_dynamic_dims(entry, dims, number) for number, entry in enumerate(inputs))
    try:
        with _silence_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module.capture(arguments),
                arguments,
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[entry.name for entry in inputs],
                output_names=list(module.outputs),
                custom_translation_table=list_translations(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:600]
        raise BundleError(
            module.subject,
            f"it cannot be traced: {reason}",
            "operations that torch.onnx.export supports, in a shared batch",
        ) from error
    assert program is not None
    return program


def _list_dynamic_dims(entry: Input, dims: Mapping[str, Any], number: int) -> dict[int, Any]:
    """List the dynamic dimensions of an input and their relations."""
    if entry.component in ("values", "weights"):
        return {0: Dim.AUTO}
    if entry.group == "user":
        return {}
    if entry.component == "positions":
        return {0: dims[entry.group], 1: Dim("P")}
    return {0: dims[entry.group] + 1 if entry.component == "offsets" else dims[entry.group]}


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter's messages about foreign packages and classes. Errors pass."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch's own pytree code, called by copyreg while the program is copied
            warnings.filterwarnings("ignore", r".*LeafSpec.*is deprecated", FutureWarning)
            # several inputs have one entry per candidate on purpose
            warnings.filterwarnings("ignore", r".*The axis name: \w+( \+ 1)? will not be used", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def run_torch(module: ProgramModule, tensors: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the outputs for the same flat tensors, computed by torch."""
    with torch.no_grad():
        output: Tensor | tuple[Tensor, ...] = module(
            *(torch.from_numpy(tensors[entry.name]) for entry in module.inputs)
        )
    # An output may be a parameter itself, which requires a gradient even here.
    return [one.detach().numpy() for one in ((output,) if isinstance(output, Tensor) else output)]
