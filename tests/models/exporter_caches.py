"""Caches of what each ONNX export computes anew and what is the same for all exports of a process.

They take a quarter of the time of a small export. Programs are the same with and without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_export = torch.onnx.export


def install() -> None:
    """Make the first export install the caches: their modules take seconds to import, and most tests export nothing."""
    torch.onnx.export = _export_with_caches


@functools.wraps(_export)
def _export_with_caches(*args: Any, **kwargs: Any) -> Any:
    _keep_registry()
    _keep_composite_operators()
    _keep_decompositions()
    torch._ops.OperatorBase.py_impl = _py_impl
    torch.onnx.export = _export  # from here on, every export finds the caches
    return _export(*args, **kwargs)


def _keep_registry() -> None:
    """Copy one registry: to build it parses 500 functions."""
    from torch.onnx._internal.exporter import _registration

    build = functools.cache(_registration.ONNXRegistry.from_torchlib)

    def copy_registry(*settings: Any, **named: Any) -> Any:
        whole, copied = build(*settings, **named), _registration.ONNXRegistry()
        vars(copied).update(vars(whole), functions={name: list(each) for name, each in whole.functions.items()})
        return copied

    _registration.ONNXRegistry.from_torchlib = staticmethod(copy_registry)


def _keep_composite_operators() -> None:
    """List composite operators once per set of registered operators: to list them looks up 1000 by name, 27 times."""
    from torch._export import utils
    from torch.export import decomp_utils, exported_program

    listed: dict[tuple[str, ...], frozenset[Any]] = {}
    collect = utils._collect_all_valid_cia_ops

    def collect_once() -> set[Any]:
        registered = (
            *torch.ops._dir,
            *torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"),
        )
        if registered not in listed:
            listed[registered] = frozenset(collect())
        return set(listed[registered])

    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = collect_once


def _keep_decompositions() -> None:
    """Copy one table of decompositions per set of operators with a translation."""
    from torch.onnx._internal.exporter import _decomp

    build = functools.cache(_decomp.create_onnx_friendly_decomposition_table)
    _decomp.create_onnx_friendly_decomposition_table = lambda operators: dict(build(frozenset(operators)))


def _py_impl(operator: Any, key: Any) -> Callable[[Any], Any]:
    """Register a kernel of an operator for a dispatch key, as torch does, without types that are evaluated per call.

    An export registers 11,000 of them.
    """
    if not isinstance(key, torch._C.DispatchKey) or key in operator.py_kernels or key == torch._C.DispatchKey.Python:
        return _register(operator, key)

    def register(kernel: Any) -> Any:
        operator.py_kernels[key] = kernel
        operator._dispatch_cache.clear()
        return kernel

    return register


_register = torch._ops.OperatorBase.py_impl
