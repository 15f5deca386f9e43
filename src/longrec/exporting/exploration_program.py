"""Program of an explorer: one request, its C candidates and noise -> probabilities [C] and exploration scores [C].

The noise is an input (``n.NAME``), which the caller draws from a logged seed (``exploration/noise.py``), so that the
program is deterministic and a golden request replays.

AGE needs the gradient of a logit inside the program. ``torch.export`` refuses gradients, so the explorer is first
captured by ``make_fx`` with symbolic sizes, gradients and all, and the captured graph is exported. What several passes
of an explorer compute alike, such as the reading of the history, is in that graph once. Masks run as one batch over the
layers above the first masked one (``vmap``).

The derivative of a recurrence is written as a scan in the other direction (``nn/scans.py``). A recurrence that no
candidate enters needs none, and is in the graph once. Refused are masks on what a recurrence reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from longrec.exploration.explorer import Explorer
from longrec.exploration.noise import draw_noise
from longrec.exporting.captured_graph import merge_equal_nodes
from longrec.exporting.inputs import NOISE, Input, list_inputs, make_random_tensors
from longrec.exporting.program import ProgramModule, build_shared_batch
from longrec.models.core.registry import name_of
from longrec.nn import kernels

PROBABILITY_OUTPUT, EXPLORATION_OUTPUT = "probability", "exploration"
"""Outputs: float32 ``[C]`` each. The first one for billing, calibration and records, the second one to rank by."""


def list_noise_inputs(explorer: Explorer) -> tuple[Input, ...]:
    """List the inputs with the noise of an explorer: ``[1, W]`` per request, or ``[C, W]``."""
    return tuple(
        Input(f"{NOISE}{one.name}", "FP32", "user" if one.per == "request" else "item", "value", 0, one.width)
        for one in explorer.noise
    )


class ExplorerProgram(ProgramModule):
    """The probabilities and the exploration scores of the candidates of one request."""

    model: Explorer
    outputs = (PROBABILITY_OUTPUT, EXPLORATION_OUTPUT)

    def __init__(self, explorer: Explorer) -> None:
        ranker = explorer.model
        self.features = list_inputs(ranker.fields, histories=ranker.reads_history)
        super().__init__(explorer, (*self.features, *list_noise_inputs(explorer)))

    @property
    def subject(self) -> str:
        """Name of the program in messages."""
        return f"{type(self.model).__name__} over model {name_of(self.model.model)}"

    @property
    def compared(self) -> list[str]:
        """Both outputs."""
        return list(self.outputs)

    def make_random_tensors(self, candidates: int, events: int | Sequence[int], seed: int) -> dict[str, NDArray[Any]]:
        """Make valid random inputs, with the noise of the seed."""
        noise = draw_noise(self.model.noise, seed, candidates)
        named: dict[str, NDArray[Any]] = {f"{NOISE}{name}": array for name, array in noise.items()}
        return {**make_random_tensors(self.features, candidates, events, seed), **named}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and exploration scores."""
        batch = build_shared_batch(self.features, tensors[: len(self.features)])
        own = zip(self.model.noise, tensors[len(self.features) :], strict=True)
        scores = self.model(batch, {one.name: tensor for one, tensor in own})
        return scores.probability, scores.score

    def capture(self, arguments: Sequence[Tensor]) -> nn.Module:
        """Return what the exporter traces: the graph of the explorer, with its gradients.

        Raises:
            NotImplementedError: if masks change what a recurrence reads.
            RuntimeError: if an operator of the model fixes a size that differs between requests.
        """
        from torch._decomp import get_decompositions
        from torch.fx.experimental import _config as symbolic_config
        from torch.fx.experimental.proxy_tensor import make_fx

        # Without it, sizes that are equal in the example would be one size for ever.
        sizes = cast(Any, symbolic_config).patch(use_duck_shape=False)
        # The exporter neither writes these nor takes them apart, because torch has a second formula of them.
        formulas = cast(Any, get_decompositions([torch.ops.aten.silu_backward, torch.ops.aten.mish_backward]))
        with kernels.capture(), sizes, freeze(self):
            graph = make_fx(self, formulas, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
        self._check_sizes(graph)
        return _Captured(merge_equal_nodes(graph)).eval()

    def _check_sizes(self, graph: fx.GraphModule) -> None:
        """Check that no operator fixed a size that differs between requests, which would fail for other requests."""
        for entry, node in zip(self.inputs, graph.graph.find_nodes(op="placeholder"), strict=True):
            for size, example in zip(entry.shape, node.meta["val"].shape, strict=True):
                if size == -1 and (isinstance(example, int) or example.node.maybe_as_int() is not None):
                    raise RuntimeError(f"an operator fixes the size of {entry.name} at {example}")


class _Captured(nn.Module):
    """A captured graph with the signature of the program."""

    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__()
        self.captured = captured

    def forward(self, *tensors: Tensor) -> Any:
        return self.captured(*tensors)


@contextmanager
def freeze(module: nn.Module) -> Iterator[None]:
    """Return the context in which no parameter requires a gradient: recurrences without a candidate then have none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad = True
