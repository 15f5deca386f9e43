"""Parameter names of earlier versions, mapped to those of today when saved weights are loaded.

A module declares ``renamed_parameters``, old name -> new name, relative to itself. A name is that of a parameter or
buffer, or of a submodule, in which case everything inside it is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def rename_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return saved weights under the parameter names that the modules of a model use today."""
    renamed = dict(weights)
    for path, module in model.named_modules():
        names: Mapping[str, str] = getattr(module, "renamed_parameters", {})
        prefix = f"{path}." if path else ""
        for old, new in names.items():
            renamed = {_rename(name, prefix + old, prefix + new): tensor for name, tensor in renamed.items()}
    return renamed


def _rename(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name == old or name.startswith(f"{old}.") else name
