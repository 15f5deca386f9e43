"""Device of a run: its choice, and the one place where batches move to it.

Weights are drawn on the CPU and then moved, so that a seed means the same weights on every device. Files hold CPU
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn

from longrec.errors import ResourceError
from longrec.features.batch import Batch
from longrec.features.transfer import transfer
from longrec.training.machine import keep_large_blocks, torch_threads

CPU = torch.device("cpu")


def choose_device(setting: str, where: str = "fit.device") -> torch.device:
    """Return the device of a setting: ``auto`` is CUDA if torch can use it, else the CPU.

    Args:
        where: name of the setting for the message.

    Raises:
        ResourceError: ``cuda`` without a CUDA device.
    """
    if setting == "cpu":
        return CPU
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if setting == "auto":
        return CPU
    build = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
    raise ResourceError(
        where,
        f"cuda, but {build}",
        "a CUDA device that torch can use",
        "set fit.device: auto or --device cpu, or install torch with CUDA and the driver of the GPU",
    )


def choose_run_device(run_setting: str, override: str | None = None) -> torch.device:
    """Return the device on which a finished run is used, which need not be the one it was trained on.

    Args:
        run_setting: ``fit.device`` of the run. A run of a GPU is used on the CPU where there is no GPU.
        override: device of the command line or the caller.

    Raises:
        ResourceError: ``cuda`` as the override, without a CUDA device.
    """
    if override is not None:
        return choose_device(override, "--device")
    return choose_device("cpu" if run_setting == "cpu" else "auto")


def find_device(model: nn.Module) -> torch.device:
    """Return the device of a model."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), CPU)


def move_all(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Batch]]:
    """Yield each batch on the host and on a device."""
    for batch in batches:
        yield batch, transfer(batch, device)


def precision(bf16: bool, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a run: bfloat16 where autocast allows it, or fp32 throughout."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@contextmanager
def prepare_torch(threads: int, seed: int, device: torch.device) -> Iterator[None]:
    """Set threads, allocator and random generators of a run, and restore those of the caller afterwards."""
    keep_large_blocks()
    cudnn = torch.backends.cudnn
    narrow = cudnn.allow_tf32
    with torch_threads(threads), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        # float32 means float32 in recurrences too. fit.bf16 is the way to fewer bits.
        cudnn.allow_tf32 = False
        try:
            yield
        finally:
            cudnn.allow_tf32 = narrow
