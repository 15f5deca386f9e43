"""Saving and loading of models in Python, without pickle: settings and fields as JSON, weights as safetensors."""

from __future__ import annotations

from pathlib import Path

from longrec.models.core import artifact
from longrec.models.core.base import Model


def load_model(path: str | Path, model_class: type[Model] | None = None) -> Model:
    """Load a model, in eval mode on the CPU.

    No code is read from the folder. A class that this process cannot import by its name is given by the caller.

    Args:
        path: a run folder, whose model of the best validation is loaded, or a folder that ``save_model`` wrote.
        model_class: class of the model, for one that was defined in a notebook or script of another process.

    Raises:
        RunError: no model in the folder, or weights that do not fit the class.
        ConfigError: a class that cannot be imported, or that does not accept the settings.
    """
    folder = Path(path)
    best = folder / "checkpoints" / "best"
    return artifact.load(best if best.is_dir() else folder, model_class).eval()


def save_model(model: Model, path: str | Path) -> Path:
    """Write a model that was trained in a loop of your own, and return the folder. ``load_model`` reads it.

    Args:
        path: a folder, which is created. A model in it is replaced.
    """
    artifact.save(model, path)
    return Path(path)
