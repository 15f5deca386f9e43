"""Masks of Monte Carlo dropout on the hidden units of the networks that end a ranker.

A mask is an input. It multiplies the output of hidden layers by forward hooks, which exist during one forward pass
alone. The model stays in evaluation mode, so that its own dropout modules do nothing and batch normalization uses its
running statistics. A model that was trained without dropout gets masks too. Embeddings are never masked.

Masked are the hidden layers of the MLPs, experts and towers that the ranker itself (or its base) ends with. Networks
inside the reading of a history, such as activation units and transformer blocks, are not: they lie below, and would
have to run again for every mask. A ranker without such a layer (``lr``, ``fm``) has the mask on the input of its head.

Shapes: Q entries (1, or C candidates), U hidden units of all masked layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from longrec.models.core.kinds import Ranker
from longrec.models.core.over import Over
from longrec.nn.experts import MLPs, MMoELayer, PLELevels, SharedBottom
from longrec.nn.mlp import MLP, Layer

_NETWORKS = (MLP, MLPs, SharedBottom, MMoELayer, PLELevels)


class Masks:
    """The masked layers of a ranker.

    Attributes:
        widths: hidden units of each. Together U.
        at_head: True if the mask is on the input of the head, because the ranker has no hidden layer.
    """

    def __init__(self, model: Ranker) -> None:
        self._layers = list_hidden_layers(model)
        self.at_head = not self._layers
        self.widths = [model.interaction_width] if self.at_head else [_get_width(layer) for layer in self._layers]

    @property
    def width(self) -> int:
        """U."""
        return sum(self.widths)

    @contextmanager
    def apply(self, mask_QU: Tensor | None) -> Iterator[None]:
        """Multiply the hidden units by a mask inside this context. None: no mask."""
        with ExitStack() as stack:
            if mask_QU is not None and not self.at_head:
                for layer, mask in zip(self._layers, torch.split(mask_QU, self.widths, 1), strict=True):
                    stack.callback(layer.register_forward_hook(_make_hook(mask)).remove)
            yield


def list_hidden_layers(model: Ranker) -> list[nn.Module]:
    """Return the hidden layers of the networks that a ranker, and the base that it is built over, end with."""
    networks = [child for child in model.children() if isinstance(child, _NETWORKS)]
    lists = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    networks += [entry for child in lists for entry in child if isinstance(entry, MLP)]
    inner = [one for network in networks for one in network.modules() if isinstance(one, MLP | MLPs)]
    own = [layer for network in inner for layer in network.layers]
    return [*(list_hidden_layers(model.base) if isinstance(model, Over) else []), *own]


def _get_width(layer: nn.Module) -> int:
    """Return the hidden units of a layer of an MLP, or of a layer of several networks."""
    if isinstance(layer, Layer):
        return layer.linear.out_features
    parallel = cast(Any, layer)
    return int(parallel.count * parallel.width)


def _make_hook(mask_QH: Tensor) -> Callable[..., Tensor]:
    def multiply(_layer: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out * mask_QH.reshape(mask_QH.shape[0], *out.shape[1:])

    return multiply
