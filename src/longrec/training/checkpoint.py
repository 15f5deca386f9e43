"""Bit-exact, crash-safe checkpoints for resuming: a process killed at any time leaves a complete one.

checkpoints/last/weights.safetensors     weights and running statistics
                 optimizer.safetensors   state of every optimizer, and the random generators
                 state.json              progress of the run, written last
checkpoints/best/                        saved model of the best validation (models/core/artifact.py)

Files hold CPU tensors, so that a run continues on another device. Only on the same device it continues to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from longrec.errors import LongRecError, ResourceError, RunError
from longrec.models.core.renames import rename_parameters
from longrec.resources import resource_error
from longrec.training.device import find_device

FORMAT = "longrec-checkpoint-1"
_RANDOM, _RANDOM_CUDA = "random", "random.cuda"
# Names that versions up to 0.4 wrote.
_FORMER_FILE, _FORMER_KEY = "optimiser.safetensors", "optimisers"


@dataclass
class State:
    """Progress of a run, between two steps.

    Attributes:
        step: number of batches done.
        epoch, position: current epoch, and the number of its batches done.
        best, best_step: best value of the monitor, and its step.
        stale: validations since then.
        loss_sum, loss_rows: training loss since the last line of ``metrics.jsonl``.
        metrics_bytes: length of that file.
        seconds: time spent so far, over all sessions.
        stopped: reason why training ended (``epochs``, ``max_steps``, ``patience``), or None.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0
    stopped: str | None = None


def save(folder: Path, model: nn.Module, optimizers: Mapping[str, Optimizer], state: State) -> None:
    """Write a checkpoint and replace the previous one."""
    tensors, numbers = _collect_optimizer_state(optimizers)
    groups = _collect_groups(optimizers)
    tensors[_RANDOM] = torch.get_rng_state()
    device = find_device(model)
    if device.type == "cuda":
        tensors[_RANDOM_CUDA] = torch.cuda.get_rng_state(device)

    def fill(into: Path) -> None:
        save_file(_separate_tensors(model.state_dict()), into / "weights.safetensors")
        save_file(_separate_tensors(tensors), into / "optimizer.safetensors")
        content = {"format": FORMAT, **asdict(state), "optimizers": numbers, "groups": groups}
        (into / "state.json").write_text(json.dumps(content, indent=1))

    replace_folder(folder, fill)


def load(folder: Path, model: nn.Module, optimizers: Mapping[str, Optimizer]) -> State | None:
    """Restore model, optimizers and random generators, on the device of the model. Return None without a checkpoint.

    Raises:
        RunError: a checkpoint that is damaged, of another version, or of another model.
    """
    recover_folder(folder)
    if not folder.exists():
        return None
    try:
        content = json.loads((folder / "state.json").read_text())
        if content.pop("format") != FORMAT:
            raise RunError(str(folder), "a checkpoint of another version", FORMAT, "resume with that version")
        numbers = content.pop("optimizers" if "optimizers" in content else _FORMER_KEY)
        groups = content.pop("groups", {})  # versions up to 0.7 wrote none
        state = State(**content)
        weights = load_file(folder / "weights.safetensors")
        tensors = load_file(_optimizer_file(folder))
        model.load_state_dict(rename_parameters(model, weights))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise _convert_memory_error(error) or RunError(
            str(folder), " ".join(str(error).split())[:400], "a complete checkpoint of this model", "start a new run"
        ) from None
    torch.set_rng_state(tensors.pop(_RANDOM).clone())
    cuda, device = tensors.pop(_RANDOM_CUDA, None), find_device(model)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda.clone(), device)
    _restore_optimizers(optimizers, tensors, numbers)
    for name, optimizer in optimizers.items():
        for group, own in zip(optimizer.param_groups, groups.get(name, ())):
            group.update(own)
    return state


def _optimizer_file(folder: Path) -> Path:
    """Return the file of optimizer state, which earlier versions wrote under another name."""
    file = folder / "optimizer.safetensors"
    return file if file.exists() else folder / _FORMER_FILE


def _convert_memory_error(error: Exception) -> LongRecError | None:
    """Return the error for missing memory, which is no damage of a checkpoint."""
    return None if isinstance(error, OSError) else resource_error(error)


def _collect_optimizer_state(optimizers: Mapping[str, Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of every parameter under ``optimizer.index.key``: tensors, and plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor | int | float | str | None):
                    raise RunError(
                        f"optimizer {type(optimizer).__name__}",
                        f"the state {key!r} is a {type(value).__name__}",
                        "tensors and numbers, which a checkpoint can hold",
                        "train with another optimizer",
                    )
                path = f"{name}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[path] = value
                else:
                    numbers[path] = value
    return tensors, numbers


def _collect_groups(optimizers: Mapping[str, Optimizer]) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers of the parameter groups of every optimizer, some of which count steps in them."""
    return {
        name: [
            {key: value for key, value in group.items() if isinstance(value, int | float)}
            for group in optimizer.param_groups
        ]
        for name, optimizer in optimizers.items()
    }


def _restore_optimizers(
    optimizers: Mapping[str, Optimizer], tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    parameters = {name: _parameters(optimizer) for name, optimizer in optimizers.items()}
    for path, value in {**tensors, **numbers}.items():
        name, index, key = path.split(".", 2)
        set_state(optimizers[name], parameters[name][int(index)], key, value)


def set_state(optimizer: Optimizer, parameter: Tensor, key: str, value: Any) -> None:
    """Set a copy of one value of the state of a parameter, on the device where its optimizer keeps it.

    ``Optimizer.load_state_dict`` would also cast it to the type of the parameter.
    """
    if isinstance(value, Tensor):
        # A count of steps is read on the host, unless a fused optimizer reads it on the device.
        on_host = key == "step" and not optimizer.defaults.get("fused")
        value = value.to("cpu" if on_host else parameter.device, copy=True)  # a loaded tensor is mapped to its file
    optimizer.state[parameter][key] = value


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        result[name] = tensor
    return result


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Replace a folder atomically: after a kill at any time, either the old or the new one is complete.

    The new folder is filled and synced under another name. Then the old one is renamed, and the new one takes its name.
    """
    recover_folder(folder)
    partial, previous = _sibling_paths(folder)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
    except BaseException as error:
        shutil.rmtree(partial)
        if (ordinary := resource_error(error, str(folder))) is not None:
            raise ordinary from error
        raise
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    sync(folder.parent)
    if previous.exists():
        shutil.rmtree(previous)


def recover_folder(folder: Path) -> None:
    """Restore the folder that an interrupted :func:`replace_folder` had renamed."""
    _, previous = _sibling_paths(folder)
    if previous.exists() and folder.exists():
        shutil.rmtree(previous)
    elif previous.exists():
        previous.rename(folder)


def replace_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace a file atomically.

    Raises:
        ResourceError: no space, no permission, or a path that is no file.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe, which cannot be replaced"
        raise ResourceError(str(path), what, "the name of a file", "choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        fill(partial)
        sync(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if (ordinary := resource_error(error, str(path))) is not None:
            raise ordinary from error
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sibling_paths(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.aside")
