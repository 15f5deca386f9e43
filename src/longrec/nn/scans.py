"""Steps of a recurrence as one operator of a captured program, whose gradient is a scan in the other direction.

    s_t = f(s_{t-1}, x_t)
    d_{t-1}, dx_t = (d_t + g_t) df(s_{t-1}, x_t)        from the last step to the first

f is any function of torch, and its derivative at one step is taken by autograd, once, when it is captured. Saved are
the states alone, from which f is computed again. Parameters that f reads get no gradient: programs have none to train.

Shapes: T steps, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import torch
from torch import Tensor, fx, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._higher_order_ops.scan import scan_op
from torch._higher_order_ops.utils import reenter_make_fx
from torch.autograd.function import once_differentiable
from torch.fx.experimental import proxy_tensor

State = tuple[Tensor, ...]
Step = Callable[[State, tuple[Tensor, ...]], State]


# No function here may be wrapped by a shape checker, because scans trace them.
@no_type_check
def scan_states(step: Step, start: State, inputs: tuple[Tensor, ...]) -> tuple[State, State]:
    """Return the last state, and all states after a step ``[T, B, ...]``, T at least 1.

    Args:
        step: function of a state and of one step of each input that returns the next state. What else it reads is
            constant.
        start: the state before the first step.
        inputs: ``[T, ...]`` each.

    Raises:
        NotImplementedError: if a capture runs over a further dimension, which an input has.
    """
    flat = (*start, *inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
        outputs = _Scan.apply(step, len(start), *flat)
    else:
        outputs = _scan(step, start, inputs)
    return tuple(outputs[: len(start)]), tuple(outputs[len(start) :])


@no_type_check
def _scan(step: Step, start: State, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    def body(*flat: Tensor) -> list[Tensor]:
        state = step(flat[: len(start)], flat[len(start) :])
        return [*state, *(x.clone() for x in state)]

    return _run(body, start, inputs)


@no_type_check
def _run(body: Callable[..., list[Tensor]], start: State, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a scan: the last state, then what the body returns besides the next one."""
    if any(torch._C._functorch.is_batchedtensor(x) for x in (*start, *inputs)):
        raise NotImplementedError("it reads a history step by step where a program runs once per mask")
    # What no mask changes is outside of the further dimension.
    with temporarily_clear_interpreter_stack():
        if proxy_tensor._CURRENT_MAKE_FX_TRACER is None:
            return tuple(scan_op(body, [*start], [*inputs], ()))
        graph, read = _lift(body, (*start, *(x[0] for x in inputs)))
        return tuple(scan_op(graph, [*start], [*inputs], read))


@no_type_check
def _lift(body: Callable[..., list[Tensor]], now: tuple[Tensor, ...]) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Return the graph of a body whose last inputs are the tensors that the body reads, and these tensors."""
    with proxy_tensor.disable_proxy_modes_tracing():
        traced = reenter_make_fx(body)(*(x.clone() for x in now))
    graph, inputs = traced.graph, dict[str, fx.Node]()
    last = graph.find_nodes(op="placeholder")[-1]
    for node in graph.find_nodes(op="get_attr"):
        if node.target not in inputs:
            with graph.inserting_after(last):
                last = inputs[node.target] = graph.placeholder(f"read_{len(inputs)}")
        node.replace_all_uses_with(inputs[node.target])
        graph.erase_node(node)
    return fx.GraphModule(nn.Module(), graph), tuple(getattr(traced, name).detach() for name in inputs)


class _Scan(torch.autograd.Function):
    """The scan with its gradient with respect to the first state and the inputs."""

    @staticmethod
    def forward(ctx: Any, step: Step, width: int, *flat: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.step, ctx.width = step, width
        start, inputs = flat[:width], flat[width:]
        outputs = _scan(step, start, inputs)
        ctx.save_for_backward(*start, *inputs, *outputs[width:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        width, step, saved = ctx.width, ctx.step, ctx.saved_tensors
        start, inputs, after = saved[:width], saved[width:-width], saved[-width:]
        wanted = [number for number, needed in enumerate(ctx.needs_input_grad[2 + width :]) if needed]
        before = tuple(torch.cat([first.unsqueeze(0), states[:-1]]) for first, states in zip(start, after))
        ends = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(start, gradients))
        own = [(number, g) for number, g in enumerate(gradients[width:]) if g is not None]
        # Dispatch below autograd, in which scans are traced, would record nothing.
        keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

        def body(*now: Tensor) -> list[Tensor]:
            d, at = list(now[:width]), now[width : len(now) - len(own)]
            for (number, _), g in zip(own, now[len(now) - len(own) :]):
                d[number] = d[number] + g
            with torch._C._ForceDispatchKeyGuard(*keys), torch.enable_grad():
                leaves = tuple(x.detach() for x in at)
                variables = [*leaves[:width], *(leaves[width + number] for number in wanted)]
                for x in variables:
                    x.requires_grad_()
                slopes = torch.autograd.grad(step(leaves[:width], leaves[width:]), variables, d, allow_unused=True)
            return [torch.zeros_like(x) if g is None else g.clone() for x, g in zip(variables, slopes)]

        reversed_inputs = tuple(x.flip(0) for x in (*before, *inputs, *(g for _, g in own)))
        outputs = _run(body, ends, reversed_inputs)
        by_input: list[Tensor | None] = [None] * len(inputs)
        for number, g in zip(wanted, outputs[width:]):
            by_input[number] = g.flip(0)
        return None, None, *outputs[:width], *by_input
