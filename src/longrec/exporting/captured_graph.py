"""Graphs of captured programs, with equal operators as one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx
from torch._higher_order_ops.scan import scan_op


def merge_equal_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph in which equal operators of equal inputs are one node, scans too.

    The forward pass of a gradient is then that of the plain score, and a recurrence that reads no candidate runs once.
    """
    from torch.fx.passes.dialect.common.cse_pass import CSEPass

    share_bodies(module)
    first: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and first.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(first[node.target])
            module.graph.erase_node(node)
    _remove_detach(module.graph)
    result = CSEPass()(module)
    merged = module if result is None else result.graph_module
    merged.graph.eliminate_dead_code()
    merged.recompile()
    return merged


def share_bodies(module: fx.GraphModule) -> None:
    """Give equal scans the same body."""
    bodies: dict[str, str] = {}
    for node in module.graph.find_nodes(op="call_function", target=scan_op):
        at = cast(fx.Node, node.args[0])
        body = cast(fx.GraphModule, module.get_submodule(cast(str, at.target)))
        _remove_detach(body.graph)
        body.graph.eliminate_dead_code()
        body.recompile()
        at.target = bodies.setdefault(body.code, cast(str, at.target))
    module.delete_all_unused_submodules()


def _remove_detach(graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):  # it changes no value
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
