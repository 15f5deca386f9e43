"""Programs of a generator: ``encode`` once per request, and one step per token of a path.

    encode     one request -> its memory, ``m.NAME`` each: keys and values of the history, start, aggregate
    step.T     the memory and W prefixes of T - 1 tokens, ``t.<feature>`` each -> log-probabilities [W, V] of token T

A step has a vocabulary and a head of its own, so each is a program of its own. Step 1 has one prefix, the empty one.
Earlier tokens of a path are computed again where they attend to each other, because a path has few of them and a cache
would have to be reordered with the beams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.exporting.bundle import GeneratorFacts
from longrec.exporting.inputs import ENCODE, LOGS_OUTPUT, MEMORY, STEP, TOKEN, Input
from longrec.exporting.program import ProgramModule, build_retrieval_batch, run_torch
from longrec.models.core.generator import Generator

_POSITIONS = (3, 5)
"""Numbers of events of two requests, whose memories tell which tensors grow with the history."""
_TRACED = 7
"""Number of events of the memory that a step is traced with."""


class MemoryProgram(ProgramModule):
    """What the steps read of one request."""

    model: Generator

    def __init__(self, model: Generator, inputs: Sequence[Input]) -> None:
        super().__init__(model, inputs)
        with torch.no_grad():
            batch, _ = build_retrieval_batch(inputs, _to_tensors(inputs, self.make_random_tensors(0, _POSITIONS[0], 0)))
            self.outputs = tuple(f"{MEMORY}{name}" for name in model.pack_memory(model.encode(batch)))

    @property
    def compared(self) -> list[str]:
        """All outputs."""
        return list(self.outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the memory."""
        batch, _ = build_retrieval_batch(self.inputs, tensors)
        return tuple(x.float() for x in self.model.pack_memory(self.model.encode(batch)).values())

    def make_memory(self, events: int, seed: int) -> dict[str, NDArray[Any]]:
        """Return the memory of a random request."""
        return dict(zip(self.outputs, run_torch(self, self.make_random_tensors(0, events, seed)), strict=True))

    def list_memory(self) -> list[Input]:
        """List the tensors of the memory as inputs of the steps."""
        one, other = (self.make_memory(events, 0) for events in _POSITIONS)
        return [
            Input(name, "FP32", "user" if len(x) == len(other[name]) else "memory", "value", 0, x.shape[1])
            for name, x in one.items()
        ]


class StepProgram(ProgramModule):
    """What each next token adds to the score of each prefix, ``[W, V]``.

    Args:
        make_memory: function that returns the memory of a random request from its number of events and a seed.
        step: number of tokens of a prefix.
    """

    model: Generator
    outputs = (LOGS_OUTPUT,)

    def __init__(
        self,
        model: Generator,
        inputs: Sequence[Input],
        make_memory: Callable[[int, int], dict[str, NDArray[Any]]],
        step: int,
    ) -> None:
        tokens = [Input(f"{TOKEN}{field.name}", "INT32", "prefix", "value", field.rows) for field in model.path[:step]]
        super().__init__(model, [*inputs, *tokens])
        self._make_memory, self.step = make_memory, step

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the log-probabilities of the next tokens."""
        by_name = {entry.name: tensor for entry, tensor in zip(self.inputs, tensors)}
        own = {name.removeprefix(MEMORY): x for name, x in by_name.items() if name.startswith(MEMORY)}
        tokens = [x for name, x in by_name.items() if name.startswith(TOKEN)]
        prefix = torch.stack(tokens, 1).long() if tokens else torch.zeros(1, 0, dtype=torch.int64)
        return self.model.score_tokens(self.model.unpack_memory(own), prefix)[0]

    def make_random_tensors(self, candidates: int, events: int | Sequence[int], seed: int) -> dict[str, NDArray[Any]]:
        """Make the memory of a random request, and as many random prefixes as there are candidates elsewhere."""
        tensors = self._make_memory(events if isinstance(events, int) else _TRACED, seed)
        random = np.random.default_rng(seed)
        for entry in self.inputs:
            if entry.group == "prefix":
                tensors[entry.name] = random.integers(0, entry.rows, candidates).astype(np.int32)
        return tensors


def build_generator_programs(model: Generator, request: Sequence[Input]) -> dict[str, ProgramModule]:
    """Return the programs of a generator by name.

    Args:
        request: inputs of a request.
    """
    encode = MemoryProgram(model, request).eval()
    memory, make = encode.list_memory(), partial(MemoryProgram.make_memory, encode)
    steps = {f"{STEP}{step + 1}": StepProgram(model, memory, make, step) for step in range(len(model.path))}
    return {ENCODE: encode, **steps}


def describe_generator(model: Generator) -> GeneratorFacts:
    """Return the description of the search of a generator."""
    config = model.config
    return GeneratorFacts(
        path=[field.name for field in model.path],
        sizes=list(model.sizes),
        attributes=model.attributes,
        beam_width=None if config.search == "exact" else config.beam_width,
        renormalize=config.renormalize,
        smoothing=config.smoothing,
    )


def _to_tensors(inputs: Sequence[Input], tensors: Mapping[str, NDArray[Any]]) -> list[Tensor]:
    return [torch.from_numpy(tensors[entry.name]) for entry in inputs]
