r"""KEEP: KEEP: An Industrial Pre-Training Framework for Online Recommendation via Knowledge Extraction
and Plugging (plug-in).

Zhang, Chan, Xu, Bian, Han, Deng, Zheng, CIKM 2022. https://arxiv.org/abs/2208.10174

The knowledge of an extractor about a user and an item enters a trained ranker without changing its shapes: the output
of a small network of the knowledge is added to a hidden layer, so that every trained weight stays usable.

    K    = [K_f if f is present, else d_f, for each knowledge feature f]            (d_f is learned)
    a_l' = W_l x + b_l + P_l(K)                                                     for each plugged layer l
    h_l  = act(norm(a_l'))                                                          (the rest is unchanged)
    P(K) = V act(U norm(K) + c);   gated: (V h) * sigmoid(G h), h the hidden layer  (V is zero at first)

With a linear P, ``W x + P K = [W P][x; K]``: plugging in equals concatenation, except that training continues from
the old weights. As V is initialized with zeros, the initial scores are those of the ranker without the plug.

Departures from the paper
    - the paper states that P is small, additive and keeps the old weights usable; its depth, its layer, the gate (of
      MKT, https://arxiv.org/abs/2402.19101), the learned default and the dropping are ours;
    - K_u and K_v are plugged, of one version of the extractor; P learns their interaction;
    - P has no output bias: the layer it is added to has one, or a normalization that removes it;
    - knowledge is dropped at random while training, so that the default is trained for serving after a timeout.

Shapes: B rows, W width of a knowledge feature, K width of all, N units of a plugged layer, H as in the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError, RunError
from longrec.features.batch import Batch
from longrec.features.fields import Field as Column
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection, build, name_of
from longrec.nn.activation import ActivationName, make_activation
from longrec.nn.embedding import Embedded
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP, Layer

LayerIndex = Annotated[int, Field(ge=0)]


class KEEPPlugConfig(Strict):
    """Settings of the plug-in of KEEP."""

    base: BaseSection = Field({"name": "din"}, description="The ranker that the knowledge is plugged into.")
    knowledge: tuple[str, ...] | None = Field(
        None, description="Embedding features to plug in; by default all of the schema. The base does not read them."
    )
    layers: tuple[LayerIndex, ...] = Field(
        (0,), min_length=1, description="Hidden layers of the base's MLPs to plug into, counted in order from 0."
    )
    hidden: float = Field(2.0, gt=0, description="Hidden units of P, as a multiple of the width of the knowledge.")
    linear: bool = Field(False, description="P is one matrix, without a hidden layer.")
    activation: ActivationName = Field("relu", description="Activation of the hidden layer of P.")
    gate: Literal["none", "glu"] = Field("none", description="Learned gate on P's output.")
    norm: Literal["layer", "none"] = Field("layer", description="Layer normalization of the knowledge before P.")
    zero_init: bool = Field(True, description="Initialize the output of P with zero: plugging in changes no score.")
    drop: float = Field(0.02, ge=0, lt=1, description="Share of knowledge dropped at random while training.")


class KEEPPlug(Over):
    """A ranker with knowledge added to hidden layers."""

    Config = KEEPPlugConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "deepfm"}, "layers": [0, 1], "gate": "glu", "norm": "none"},
        {"base": {"name": "pooling", "batch_norm": False}, "linear": True, "zero_init": False, "drop": 0.3},
    )

    def __init__(self, config: KEEPPlugConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.knowledge = _knowledge(config.knowledge, fields)
        self.set_base(config.base, without(fields, self.knowledge))
        widths = {field.name: field.width - 1 for field in fields.features if field.name in self.knowledge}
        # Knowledge is standardized, so a default of deviation 1 has the scale of knowledge.
        self.defaults = nn.ParameterList(nn.Parameter(torch.randn(widths[name])) for name in self.knowledge)
        self.plugs = nn.ModuleList()
        for layer in self._layers():
            layer.split_relu()
            self.plugs.append(Plug(sum(widths.values()), layer.linear.out_features, config))

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base for a ranker without a plug."""
        return "" if isinstance(other, KEEPPlug) else "base."

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "B H"]:
        """Return the representation of every row by the base with plugged layers."""
        with self._plugged(batch):
            return self.base.interact(batch, embedded)

    def gather_knowledge(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return K of every row: knowledge if present, else the learned defaults."""
        vectors = []
        for name, default in zip(self.knowledge, self.defaults):
            x_BW = cast(Tensor, batch.per_candidate(name))
            there_B1 = x_BW[:, :1] > 0.5
            if self.training and self.config.drop:
                there_B1 = there_B1 & (torch.rand_like(x_BW[:, :1]) >= self.config.drop)
            vectors.append(torch.where(there_B1, x_BW[:, 1:].to(default.dtype), default))
        return torch.cat(vectors, 1)

    def shares(self, batch: Batch) -> Float[Tensor, " L"]:
        """Return ``||P(K)|| / ||a||`` of each plugged layer over a batch (0 initially).

        Far above 1, the plug dominates the weights of the ranker.
        """
        layers, norms = self._layers(), torch.zeros(len(self.plugs))

        def note(index: int) -> Callable[..., None]:
            def hook(linear: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
                norms[index] = torch.linalg.vector_norm(out)

            return hook

        hooks = [layer.linear.register_forward_hook(note(index)) for index, layer in enumerate(layers)]
        try:
            with torch.no_grad():
                k_BK = self.gather_knowledge(batch)
                added = torch.stack([torch.linalg.vector_norm(plug(k_BK)) for plug in self.plugs])
                self.represent(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return added / norms

    @contextmanager
    def _plugged(self, batch: Batch) -> Iterator[None]:
        """Add the outputs of the plugs to the layers of the base within the context."""
        k_BK, layers = self.gather_knowledge(batch), self._layers()
        hooks = [
            layer.linear.register_forward_hook(_adder(plug(k_BK)))
            for layer, plug in zip(layers, self.plugs, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layers(self) -> list[Layer]:
        """Return the plugged layers."""
        layers = [cast(Layer, layer) for mlp in mlps(self.base) for layer in mlp.layers]
        beyond = [index for index in self.config.layers if index >= len(layers)]
        if beyond or len(set(self.config.layers)) < len(self.config.layers):
            name = name_of(self.base)
            if not layers:
                raise ConfigError(
                    "config", [f"model.base.name: {name} has no MLP that knowledge could be plugged into"]
                )
            message = f"{name} has {len(layers)} hidden layers, 0 to {len(layers) - 1}, name each once"
            raise ConfigError("config", [f"model.layers: {list(self.config.layers)}; {message}"])
        return [layers[index] for index in self.config.layers]


def _adder(term_BN: Tensor) -> Callable[..., Tensor]:
    """Return a hook that adds a term to the output of a layer."""
    return lambda layer, inputs, output_BN: output_BN + term_BN


class Plug(nn.Module):
    """P: maps all knowledge to the term that is added to one layer."""

    def __init__(self, inputs: int, outputs: int, config: KEEPPlugConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs) if config.norm == "layer" else None
        width = inputs if config.linear else max(round(config.hidden * inputs), 1)
        self.hidden = None if config.linear else Linear(inputs, width)
        self.activation = None if config.linear else make_activation(config.activation, width)
        self.last = Linear(width, outputs, bias=False)
        self.gate = Linear(width, outputs) if config.gate == "glu" else None
        if config.zero_init:
            nn.init.zeros_(self.last.weight)

    def forward(self, k_BK: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        """Return the term that is added to the layer."""
        for step in (self.norm, self.hidden, self.activation):
            k_BK = k_BK if step is None else step(k_BK)
        added: Tensor = self.last(k_BK)
        return added if self.gate is None else added * torch.sigmoid(self.gate(k_BK))


def plug(model: Ranker, fields: Fields, settings: Mapping[str, Any] | None = None) -> KEEPPlug:
    """Return a trained ranker with knowledge plugged in. With ``zero_init`` its scores are unchanged.

    Args:
        fields: the fields of the ranker plus the embedding features to plug in.
        settings: of ``keep_plug``, without ``base``.

    Raises:
        ConfigError: if the settings cannot be used.
        RunError: if the ranker was built for other fields.
    """
    base = {"name": name_of(model), **model.config.model_dump(mode="json")}
    plugged = build({"name": "keep_plug", "base": base, **(settings or {})}, fields)
    assert isinstance(plugged, KEEPPlug)
    if plugged.base.fields != model.fields:
        raise RunError("keep_plug", "a ranker of other fields", "the fields given, less the embedding features")
    plugged.base.load_state_dict(model.state_dict())
    return plugged.train(model.training)


def without(fields: Fields, names: Sequence[str]) -> Fields:
    """Return the fields without some features."""
    return Fields(tuple(field for field in fields.features if field.name not in names), fields.histories)


def mlps(model: Ranker) -> list[MLP]:
    """Return the MLPs over the rows of a batch, in the order of the model, including those of nested rankers.

    MLPs inside layers of a model (an attention) are not included: they work on the positions of histories.
    """
    collected: list[MLP] = []
    for child in model.children():
        if isinstance(child, MLP):
            collected.append(child)
        elif isinstance(child, Ranker):
            collected += mlps(child)
    return collected


def _knowledge(wanted: tuple[str, ...] | None, fields: Fields) -> tuple[str, ...]:
    """Return the names of the embedding features to plug in."""
    vectors: list[Column] = [field for field in fields.features if field.kind == "embedding"]
    choices = tuple(field.name for field in vectors)
    if not choices:
        do = "add a feature {kind: embedding, from: knowledge/v1, side: user} (or item) that longrec encode wrote"
        raise ConfigError("schema", [f"features: keep_plug plugs in embedding features, and the schema has none; {do}"])
    if wanted is None:
        return choices
    faults = [f"model.knowledge: {name!r} is no embedding feature; those are: {', '.join(choices)}" for name in wanted
              if name not in choices]  # fmt: skip
    if not wanted or len(set(wanted)) < len(wanted):
        faults.append("model.knowledge: must name each feature once, and one at least")
    if faults:
        raise ConfigError("config", faults)
    return wanted
