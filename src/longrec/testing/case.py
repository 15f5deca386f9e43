"""Case of the conformance suite: a model with its settings, and what several checks read of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Encoder, Ranker
from longrec.models.core.registry import build, find
from longrec.testing.batches import FEW, FIELDS, PATHS, TOKENS, ragged
from longrec.testing.expect import ConformanceError


class Case:
    """A model with its settings.

    Args:
        name: name of the model, as in a config.
        settings: its settings, without the name. Empty for the defaults.
        fields: inputs of all checks. None for those of the suite: fields of every kind, a few fields, token histories,
            and for generators items with codes.
        variant: True for settings beside the defaults. What no setting can change is then not checked again.

    Attributes:
        fields, few, tokens: inputs of the checks: many, few, and with vectors of other models.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        fields: Fields | None = None,
        *,
        variant: bool = False,
    ) -> None:
        self.name, self.settings, self.variant = name, dict(settings or {}), variant
        fields = fields or (PATHS if issubclass(self.model_class, Generator) else None)
        self.fields, self.few, self.tokens = fields or FIELDS, fields or FEW, fields or TOKENS
        self._models: dict[int, Ranker | Encoder] = {}

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())]).replace(" ", "")

    @property
    def model_class(self) -> type[Model]:
        """The class of the model."""
        return find(self.name)

    def build(self, seed: int = 0, fields: Fields | None = None) -> Model:
        """Return a new model."""
        torch.manual_seed(seed)
        return build({"name": self.name, **self.settings}, self.fields if fields is None else fields)

    def build_scorer(self, seed: int = 0, fields: Fields | None = None) -> Ranker | Encoder:
        """Return a new model.

        Raises:
            ConformanceError: if it is neither a ranker nor an encoder.
        """
        model = self.build(seed, self.fields if fields is None else fields)
        if not isinstance(model, Ranker | Encoder):
            raise ConformanceError(f"{type(model).__name__} is neither a Ranker nor an Encoder")
        return model

    def lively(self, fields: Fields | None = None) -> Ranker | Encoder:
        """Return a model in evaluation mode with parameters and statistics that differ from their initial values."""
        return copy.deepcopy(self.frozen(fields))

    def frozen(self, fields: Fields | None = None) -> Ranker | Encoder:
        """Return the model of ``lively`` itself, for a check that changes nothing of it: all these checks have one."""
        fields = self.fields if fields is None else fields
        if id(fields) not in self._models:
            self._models[id(fields)] = self._enliven(fields)
        return self._models[id(fields)]

    def release(self) -> None:
        """Let go of the models of the checks."""
        self._models.clear()

    def _enliven(self, fields: Fields) -> Ranker | Encoder:
        model = self.build_scorer(fields=fields)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.3))
            for table in model.embedding_parameters():
                table.add_(torch.randn_like(table) * 0.4)
            model.train()
            for seed in range(6):
                model(ragged(64, seed=seed, fields=fields))
        return model.eval()


def output_of(model: Ranker | Encoder, batch: Batch) -> Tensor:
    """Return the output of a model for each row: the logit ``[B]`` of a ranker, the vector ``[B, W]`` of an encoder."""
    return model.encode(batch) if isinstance(model, Encoder) else model(batch)


def scores(model: Ranker | Encoder, batch: Batch) -> Tensor:
    """Return the output of a model for each row, without a graph of gradients."""
    with torch.no_grad():
        return output_of(model, batch)


def backpropagate(model: Model, batch: Batch) -> Tensor:
    """Compute the gradients of the loss of a batch, and return the loss."""
    loss = model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def logits(model: Ranker | Encoder, batch: Batch) -> Tensor:
    """Return the logit of each row ``[B]``, without a graph of gradients."""
    with torch.no_grad():
        return model(batch)
