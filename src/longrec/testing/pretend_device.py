"""A pretend accelerator: finds code that is tied to the CPU, and counts waits for the device, on a machine without one.

Tensors on the pretend device report ``device.type == "meta"`` but hold values, so that code that depends on values
runs. An operation that mixes them with CPU tensors of one dimension or more raises ``DeviceMixError``, as CUDA does.
Backward passes work, because autograd treats ``meta`` as the CPU.

    with PretendDevice() as device:
        model, batch = move_model(model, device), batch.to(device)
        device.waits.clear()
        model.loss(batch).backward()
    device.waits  # Counter({"item": 1})

A GPU computes behind the host, which waits for it whenever it needs a value or a size that depends on values. These
waits are counted by name: reads of a value (``item``, ``tolist``, ``copy to the host``), blocking copies to the device
(``copy to the device``), and operators whose output has a size that depends on values (``nonzero``, ``unique``, ...).

Autocast does nothing on the pretend device: it has no narrow numbers.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_SIZED_BY_VALUES = (
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "argwhere",
)  # fmt: skip


class DeviceMixError(RuntimeError):
    """An operation combined tensors of two devices."""


class FarTensor(Tensor):
    """A tensor of the pretend device. ``inner`` holds its values."""

    inner: Tensor  # type: ignore[assignment]
    waits: collections.Counter[str]

    @staticmethod
    def __new__(cls, inner: Tensor, waits: collections.Counter[str]) -> FarTensor:
        """Wrap a CPU tensor."""
        strided = inner.layout == torch.strided
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride() if strided else None,
            storage_offset=inner.storage_offset() if strided else None,
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor, waits: collections.Counter[str]) -> None:
        self.inner, self.waits = inner, waits

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """False: loading weights into a tensor of the true device "meta" has no effect."""
        return False

    def __repr__(self, **settings: Any) -> str:  # type: ignore[override]
        return f"FarTensor({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> FarTensor:
        copied = FarTensor(self.inner.detach().clone(), self.waits)
        memo[id(self)] = copied
        copied.requires_grad_(self.requires_grad)
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        far = next(value for value in _list_tensors((*args, *kwargs.values())) if isinstance(value, FarTensor))
        return _run(far.waits, func, args, kwargs)

    def tolist(self) -> Any:
        """Return the values as lists, which waits for the device."""
        self.waits["tolist"] += 1
        return self.inner.tolist()

    def new_tensor(self, data: Any, **settings: Any) -> Tensor:  # type: ignore[override]
        """Return a tensor of data of the host, of the same type."""
        return _build(self.waits, torch.tensor, data, {"dtype": self.dtype, **settings})

    def numpy(self, *, force: bool = False) -> Any:
        """Raise an error, as a tensor of a GPU does."""
        raise DeviceMixError("numpy() of a tensor on the pretend device; copy it to the host first")


class PretendDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which ``device="meta"`` is the pretend device.

    Attributes:
        waits: number of waits for the device, by name.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: collections.Counter[str] = collections.Counter()
        self._patches = ExitStack()

    def __enter__(self) -> PretendDevice:
        # Neither knows of the device: both would refuse it.
        self._patches.enter_context(patch("torch.autocast", _autocast))
        # Both write values where a tensor of the true device "meta" has none.
        for name in ("tensor", "as_tensor"):
            self._patches.enter_context(patch(f"torch.{name}", self._on_either(getattr(torch, name))))
        fused = [*_foreach_utils._get_fused_kernels_supported_devices(), DEVICE.type]
        for module in ("adam", "adamw", "adagrad", "sgd", "optimizer"):
            name = f"torch.optim.{module}._get_fused_kernels_supported_devices"
            self._patches.enter_context(patch(name, lambda: fused, create=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self.waits, func, args, kwargs or {})

    def _on_either(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def build(data: Any, **settings: Any) -> Tensor:
            device = settings.get("device")
            if device is None or torch.device(device).type != DEVICE.type:
                return make(data, **settings)
            return _build(self.waits, make, data, settings)

        return build


def _build(waits: collections.Counter[str], make: Callable[..., Tensor], data: Any, settings: dict[str, Any]) -> Tensor:
    """Return a tensor of data of the host, which is copied to the device before the host goes on."""
    waits["copy to the device"] += 1
    settings = {key: value for key, value in settings.items() if key not in ("device", "requires_grad")}
    return FarTensor(make(data, **settings), waits)


_real_autocast = torch.autocast


def _autocast(device_type: str, *args: Any, **settings: Any) -> Any:
    return nullcontext() if device_type == DEVICE.type else _real_autocast(device_type, *args, **settings)


def _run(waits: collections.Counter[str], func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values, and return tensors of its device."""
    name = func.overloadpacket.__name__
    tensors = _list_tensors((*args, *kwargs.values()))
    far = any(isinstance(value, FarTensor) for value in tensors)
    requested = kwargs.get("device")
    to_far = requested is not None and torch.device(requested).type == DEVICE.type
    to_host = requested is not None and not to_far
    copies = name in ("_to_copy", "copy_", "_copy_from", "_copy_from_and_resize")
    if far and not copies:
        near = [tuple(value.shape) for value in tensors if not isinstance(value, FarTensor) and value.dim() > 0]
        if near:
            raise DeviceMixError(f"{func}: CPU tensors of shapes {near} meet tensors of the pretend device")
    wait = _find_wait(name, args, kwargs, far, to_far, to_host)
    if wait:
        waits[wait] += 1
    args = [_map_tensors(_get_values, value) for value in args]
    inner_kwargs = {key: _map_tensors(_get_values, value) for key, value in kwargs.items()}
    if requested is not None:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
        inner_kwargs.pop("pin_memory", None)
    out = func(*args, **inner_kwargs)
    if not ((far and not to_host) or to_far) or (name == "copy_" and not isinstance(tensors[0], FarTensor)):
        return out
    return _map_tensors(lambda value: FarTensor(value, waits), out)


def _list_tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments of an operator and in lists of them."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += _list_tensors(value)
    return tensors


def _map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return an argument or a result of an operator with other tensors.

    Operators have lists and tuples of tensors and no other containers. A general walk would take half of a step.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and type(value) is not torch.Size:
        return type(value)([_map_tensors(change, entry) for entry in value])
    return value


def _find_wait(name: str, args: Any, kwargs: dict[str, Any], far: bool, to_far: bool, to_host: bool) -> str | None:
    """Return the name of the wait that an operator of a GPU would cause. None if it would cause none."""
    blocks = not kwargs.get("non_blocking", False)
    if name == "copy_":
        target, source = args[0], args[1]
        both = isinstance(target, FarTensor), isinstance(source, FarTensor)
        blocks = not (len(args) > 2 and args[2]) and blocks
        to_far, to_host = both == (True, False) and source.dim() > 0, both == (False, True)
    elif name != "_to_copy":
        to_far = to_host = False
    if to_host and far:
        return "copy to the host"
    if to_far and not (far and name == "_to_copy") and blocks:
        return "copy to the device"
    if not far:
        return None
    if name == "_local_scalar_dense":
        return "item"
    if name in _SIZED_BY_VALUES:
        return name.lstrip("_").rstrip("2")
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = [at for at in args[1] if at is not None and at.dtype in (torch.bool, torch.uint8)]
        return "index by a mask" if masks else None
    return None


def _get_values(tensor: Tensor) -> Tensor:
    return tensor.inner if isinstance(tensor, FarTensor) else tensor


def move_model(model: nn.Module, device: torch.device = DEVICE) -> nn.Module:
    """Move the parameters and buffers of a model to the pretend device, inside the context. Return the model."""
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                far = moved.get(id(parameter))
                if far is None:
                    far = nn.Parameter(parameter.data.to(device), requires_grad=parameter.requires_grad)
                    moved[id(parameter)] = far
                module._parameters[key] = far
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
    return model
