"""Shared representations for several tasks: a shared bottom, gated experts, or task-specific and shared experts.

Each of the three maps ``[B, I]`` to one vector per task, ``[B, K, H]``. ``Towers`` compute logits from these vectors.

Shapes: B rows, K tasks, M parallel networks, E experts, I inputs, O outputs, H width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.nn.activation import ActivationName, BatchNorm, make_activation
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP


class Form(NamedTuple):
    """Options of all hidden layers of several networks, in the order of the arguments of an MLP."""

    activation: ActivationName = "relu"
    dropout: float = 0.0
    batch_norm: bool = False


_PLAIN = Form()


class MLPs(nn.Module):
    """M parallel networks of equal layers with separate weights, computed by one product per layer.

    Args:
        inputs: width of the input of each network.
        widths: units of the hidden layers of each network.
        apart: True if each network has its own input, ``[B, M, I]``. False if all read the same ``[B, I]``.
        outputs: units of a final linear layer, or None to end with the last hidden layer.

    Attributes:
        width: units of the output of each network.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        count: int,
        form: Form = _PLAIN,
        *,
        apart: bool = False,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.count, self.layers = count, nn.ModuleList()
        for index, (width_in, width_out) in enumerate(pairwise([inputs, *widths])):
            own = apart or index > 0
            self.layers.append(_Layer(width_in, width_out, count, own, form))
        hidden = [inputs, *widths][-1]
        self.last = None if outputs is None else _product(hidden, outputs, count, apart or bool(widths), True)
        self.width = outputs or hidden

    def forward(self, x: Tensor) -> Float[Tensor, "B M O"]:
        """Return the output of each network."""
        for layer in self.layers:
            x = layer(x)
        return x if self.last is None else self.last(x).view(-1, self.count, self.width)


class Towers(MLPs):
    """One network per task over the vector of that task, ending with a logit."""

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        tasks: int,
        form: Form = _PLAIN,
    ) -> None:
        super().__init__(inputs, widths, tasks, form, apart=True, outputs=1)

    @property
    def output_biases(self) -> tuple[Tensor, ...]:
        """The bias of the logit of each task, as slices of one parameter."""
        assert self.last is not None, "towers end with a logit"
        return cast(Tensor, self.last.bias).tensor_split(self.count)

    def forward(self, h_BKH: Float[Tensor, "B K H"]) -> Float[Tensor, "B K"]:
        """Return the logit of every task."""
        return super().forward(h_BKH).squeeze(2)


class SharedBottom(nn.Module):
    """One network for all tasks (Caruana 1997).

    Attributes:
        width: H.
    """

    def __init__(
        self,
        inputs: int,
        tasks: int,
        widths: Sequence[int],
        form: Form = _PLAIN,
    ) -> None:
        super().__init__()
        self.tasks, self.bottom = tasks, MLP(inputs, widths, *form)
        self.width = self.bottom.width

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B K H"]:
        """Return the same vector for each task."""
        h_BH: Tensor = self.bottom(x_BI)
        return h_BH.unsqueeze(1).expand(-1, self.tasks, -1)


class MMoELayer(nn.Module):
    """Experts shared by all tasks, with one gate per task (Ma et al. 2018, eq. 6 and 7).

    Attributes:
        width: H.
    """

    def __init__(
        self,
        inputs: int,
        tasks: int,
        experts: int,
        widths: Sequence[int],
        form: Form = _PLAIN,
    ) -> None:
        super().__init__()
        self.experts = MLPs(inputs, widths, experts, form)
        self.gates = Gates(inputs, tasks, experts)
        self.width = self.experts.width

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B K H"]:
        """Return the experts of each row, mixed per task."""
        return self.gates.mix(x_BI, self.experts(x_BI))


class PLELevels(nn.Module):
    """Levels of experts, some shared and some specific to one task (Tang et al. 2020, section 4).

    Args:
        own: experts per task at every level.
        shared: experts of all tasks at every level.
        levels: 1 is CGC, "customized gate control".

    Attributes:
        width: H.
    """

    def __init__(
        self,
        inputs: int,
        tasks: int,
        own: int,
        shared: int,
        widths: Sequence[int],
        levels: int = 2,
        form: Form = _PLAIN,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(1, levels + 1):
            level_layer = CGC(inputs, tasks, own, shared, widths, form, first=level == 1, last=level == levels)
            self.levels.append(level_layer)
            inputs = level_layer.width
        self.width = inputs

    def forward(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B K H"]:
        """Return the vector of each task after the last level."""
        for level in self.levels:
            x_BI = level(x_BI)
        return x_BI


class CGC(nn.Module):
    """One level of PLE, with one gate per task.

    The gate of a task weighs its own experts and the shared ones. The gate of the next level's shared experts weighs
    all experts. All experts are one product per layer, and all gates one softmax.

    Args:
        first: all experts read the same ``[B, I]``. Otherwise each task reads its output of the previous level, and the
            shared experts theirs, ``[B, K + 1, I]``.
        last: no level follows, so that no output for shared experts is needed.

    Attributes:
        experts: those of each task, task by task, then the shared ones.
        width: H.
    """

    group: Tensor
    seen: Tensor

    def __init__(
        self,
        inputs: int,
        tasks: int,
        own: int,
        shared: int,
        widths: Sequence[int],
        form: Form = _PLAIN,
        *,
        first: bool = True,
        last: bool = True,
    ) -> None:
        super().__init__()
        self.tasks, self.first, self.count = tasks, first, tasks * own + shared
        self.experts = MLPs(inputs, widths, self.count, form, apart=not first)
        self.gates = _product(inputs, own + shared, tasks, not first, False)
        self.shared_gate = None if last else Linear(inputs, self.count, bias=False)
        self.width = self.experts.width
        groups = [task for task in range(tasks) for _ in range(own)] + [tasks] * shared
        self.register_buffer("group", torch.tensor(groups), persistent=False)
        self.register_buffer("seen", _index_scores(groups, tasks, own, shared, last), persistent=False)

    def forward(self, x: Tensor) -> Float[Tensor, "B G H"]:
        """Return the output of each task's gate and, unless this is the last level, of the shared gate as the last
        entry.
        """
        w_BGE = self.weights(x)
        experts_BEH: Tensor = self.experts(x if self.first else x.index_select(1, self.group))
        return torch.matmul(w_BGE.to(experts_BEH.dtype), experts_BEH)

    def weights(self, x: Tensor) -> Float[Tensor, "B G E"]:
        """Return the weight of each expert at each gate. 0 for those of other tasks."""
        of_tasks, of_shared = (x, x) if self.first else (x[:, : self.tasks], x[:, -1])
        scores = [self.gates(of_tasks)] + ([] if self.shared_gate is None else [self.shared_gate(of_shared)])
        never_B1 = x.new_full((x.shape[0], 1), -torch.inf)
        s_BX = torch.cat([*scores, never_B1], 1).index_select(1, self.seen)
        return s_BX.view(-1, len(self.seen) // self.count, self.count).softmax(2)


def _index_scores(groups: list[int], tasks: int, own: int, shared: int, last: bool) -> Tensor:
    """Return the index of each (gate, expert) score among all scores. Hidden experts have the index after them."""
    n, experts = own + shared, len(groups)
    never = tasks * n + (0 if last else experts)
    indices = []
    for gate in range(tasks):
        own_first, shared_first = gate * n - gate * own, gate * n + own - tasks * own
        for expert, group in enumerate(groups):
            first = own_first if group == gate else shared_first
            indices.append(first + expert if group in (gate, tasks) else never)
    return torch.tensor(indices + ([] if last else list(range(tasks * n, never))))


class Gates(nn.Module):
    """K softmax gates over E experts, each a linear map without bias. There are no parameters if E is 1."""

    def __init__(self, inputs: int, tasks: int, experts: int) -> None:
        super().__init__()
        self.tasks, self.experts = tasks, experts
        self.linear = Linear(inputs, tasks * experts, bias=False) if experts > 1 else None

    def weights(self, x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B K E"]:
        """Return the weight of each expert per task. The weights sum to 1."""
        if self.linear is None:
            return x_BI.new_ones(x_BI.shape[0], self.tasks, 1)
        s_BG: Tensor = self.linear(x_BI)
        return s_BG.view(-1, self.tasks, self.experts).softmax(2)

    def mix(self, x_BI: Float[Tensor, "B I"], e_BEH: Float[Tensor, "B E H"]) -> Float[Tensor, "B K H"]:
        """Return the weighted sum of the experts per task."""
        if self.linear is None:
            return e_BEH.expand(-1, self.tasks, -1)
        return torch.matmul(self.weights(x_BI).to(e_BEH.dtype), e_BEH)


class _Layer(nn.Module):
    """One hidden layer of M networks."""

    def __init__(self, inputs: int, width: int, count: int, apart: bool, form: Form) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.product = _product(inputs, width, count, apart, not form.batch_norm)
        self.norm = BatchNorm(count * width) if form.batch_norm else None
        self.activation = make_activation(form.activation, count * width)
        self.dropout = nn.Dropout(form.dropout) if form.dropout else None

    def forward(self, x: Tensor) -> Float[Tensor, "B M O"]:
        x_BX: Tensor = self.product(x)
        for step in (self.norm, self.activation, self.dropout):
            x_BX = x_BX if step is None else step(x_BX)
        return x_BX.view(-1, self.count, self.width)


def _product(inputs: int, outputs: int, count: int, apart: bool, bias: bool) -> nn.Module:
    """Return the linear layer of M networks, from ``[B, I]`` or ``[B, M, I]`` to ``[B, M O]``."""
    return _Apart(inputs, outputs, count, bias) if apart else Linear(inputs, count * outputs, bias=bias)


class _Apart(nn.Module):
    """M linear maps, each of an input of its own, initialized as ``nn.Linear`` is."""

    def __init__(self, inputs: int, outputs: int, count: int, bias: bool) -> None:
        super().__init__()
        reach = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(count * outputs).uniform_(-reach, reach)) if bias else None

    def forward(self, x_BMI: Float[Tensor, "B M I"]) -> Float[Tensor, "B X"]:
        """Return ``[B, M O]``."""
        y_BX = torch.bmm(x_BMI.transpose(0, 1), self.weight).transpose(0, 1).flatten(1)
        return y_BX if self.bias is None else y_BX + self.bias
