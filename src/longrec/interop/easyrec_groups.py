"""Conversion of the components of EasyRec's models: groups of features, layers, attention, losses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_features import Features
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_section import Section

_ACTIVATIONS = {"": "relu", "leaky_relu": "prelu"} | {
    name: name for name in ("relu", "prelu", "dice", "sigmoid", "tanh", "gelu")
}
_BINARY_LOSSES = ("CLASSIFICATION", "CROSS_ENTROPY_LOSS", "BINARY_CROSS_ENTROPY_LOSS")
_ITEM_GROUP = re.compile(r"(^|_)(item|items|ad|ads|goods|product|sku|candidate|target)(_|$)")
_ITEM_FEATURE = re.compile(r"^(item|adgroup|ad|goods|product|sku|candidate|target)_")
_ATTENTION_UNITS = (128, 64, 32, 1)
"""EasyRec's units of an attention inside a group without ``seq_dnn``."""


@dataclass
class Groups:
    """The feature groups of a model, with the features that were read from each."""

    config: Section
    features: Features
    histories: Histories

    def __post_init__(self) -> None:
        self.by_name: dict[str, Section] = {}
        for group in self.config.all("feature_groups"):
            name = group.get("group_name") or ""
            if name in self.by_name:
                group.fault("group_name", f"is {name!r} again; expected distinct names")
            self.by_name[name] = group
            group.get("wide_deep")
            if group.get("negative_sampler", False):
                group.fault("negative_sampler", "is true, which samples items for retrieval; expected false")
        self._read: dict[str, list[str]] = {}

    def find(self, name: str, section: Section) -> Section | None:
        """Return the group that ``input`` of a tower names, or None with a fault."""
        group = self.by_name.get(name)
        if group is None:
            near = nearest(name, self.by_name)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(self.by_name) or 'none'}"
            section.fault("input", f"names the group {name!r}, which is not there; {hint}")
        return group

    def find_whole(self, section: Section) -> str:
        """Return the group of a model of one group: ``all``, or the only one. Empty, with a fault, otherwise."""
        if "all" in self.by_name or len(self.by_name) == 1:
            return "all" if "all" in self.by_name else next(iter(self.by_name))
        names = ", ".join(self.by_name) or "none"
        self.config.reading.fault(
            section.position, f"{section.path} reads the group 'all', which is not there; known: {names}"
        )
        return ""

    def read(self, name: str) -> list[str]:
        """Return the features of a group, by their names in the schema."""
        group = self.by_name[name]
        if name not in self._read:
            names: list[str] = []
            of_item = _ITEM_GROUP.search(name.lower()) is not None
            for feature in self.features.expand_names(group, "feature_names"):
                spec = self.features.find(feature, group, "feature_names")
                if spec is None:
                    continue
                sequence = spec.kind == "SequenceFeature"
                candidate = not sequence and (of_item or _ITEM_FEATURE.match(feature.lower()) is not None)
                ours = self.features.use(spec, candidate=candidate)
                if ours is not None and ours not in names:
                    names.append(ours)
            self._read[name] = names
        return self._read[name]

    def read_all(self) -> None:
        """Read every group, and note the sequences, which a model of plain fields cannot use."""
        for name, group in self.by_name.items():
            self.read(name)
            group.note("sequence_features", "not carried", "this model reads no histories") if group.has(
                "sequence_features"
            ) else None


def check_loss(config: Section) -> None:
    """Add a fault for a loss that is not the one of a single label of 0 and 1."""
    for section in (config, *config.all("losses")):
        loss = section.get("loss_type", "CLASSIFICATION")
        if loss not in _BINARY_LOSSES:
            section.fault("loss_type", f"is {loss}; expected {' or '.join(_BINARY_LOSSES)}: one label of 0 and 1")
    if config.get("num_class", 1) != 1:
        config.fault("num_class", f"is {config.get('num_class')}; expected 1: one label of 0 and 1")
    if len(config.all("losses")) > 1:
        config.fault("losses", "are several; expected one")


def convert_layers(dnn: Section, *, default: tuple[int, ...] = ()) -> dict[str, Any]:
    """Convert an MLP: ``mlp``, ``activation``, ``batch_norm`` and ``dropout`` (one per layer)."""
    units = dnn.all("hidden_units") or list(default)
    if not units:
        dnn.fault("hidden_units", "is missing; expected the units of one layer at least")
    units = [] if units == [0] else units
    settings: dict[str, Any] = {
        "mlp": units,
        "activation": _convert_activation(dnn),
        "batch_norm": dnn.get("use_bn", True),
    }
    dropout = dnn.all("dropout_ratio")
    if dropout and len(dropout) != len(units):
        dnn.fault("dropout_ratio", f"has {len(dropout)} numbers for {len(units)} layers; expected one per layer")
    elif dropout:
        settings["dropout"] = dropout
    return settings


def _convert_activation(dnn: Section) -> str:
    value = dnn.get("activation", "tf.nn.relu")
    name = value.lower().rpartition(".")[2] if value.lower().startswith("tf.") else value.lower()
    if name == "leaky_relu":
        dnn.note("activation", "differs", "prelu, whose slope is learned")
    if name not in _ACTIVATIONS:
        dnn.fault("activation", f"is {value!r}; expected one of {', '.join(filter(None, _ACTIVATIONS))}")
    if not value:
        dnn.note("activation", "differs", "relu")
    return _ACTIVATIONS.get(name, "relu")


def convert_plain_layers(dnn: Section) -> dict[str, Any]:
    """Convert an MLP of a model with one dropout rate for all layers."""
    settings = convert_layers(dnn)
    shares = settings.pop("dropout", [0.0])
    if len(set(shares)) > 1:
        dnn.note("dropout_ratio", "differs", f"one rate for all layers: {shares[0]:g}")
    return settings | {"dropout": shares[0]}


def convert_attention_unit(dnn: Section) -> dict[str, Any]:
    """Convert the activation unit of an attention. Its last layer, of one unit, is always present."""
    settings = convert_layers(dnn, default=_ATTENTION_UNITS)
    units = settings["mlp"]
    if units and units[-1] != 1:
        dnn.fault("hidden_units", f"end with {units[-1]}; expected 1, the weight of an event")
    if len(units) == 1:
        dnn.fault("hidden_units", "are the weight alone; expected one hidden layer at least before it")
    if "dropout" in settings:
        settings["dropout"] = settings["dropout"][:-1]
    return settings | {"mlp": units[:-1]}


def choose_width(groups: Groups, model: str) -> int:
    """Return the width of all features in a model that multiplies them, and note features of other widths."""
    groups.read_all()
    dims = [spec.settings["dim"] for spec in groups.features.read.values() if "dim" in spec.settings]
    width: int = max(set(dims), key=lambda dim: (dims.count(dim), dim)) if dims else 16
    for spec in groups.features.read.values():
        if spec.settings.get("dim", width) != width:
            spec.config.note("embedding_dim", "not carried", f"{model} has one width for all features: {width}")
        spec.settings.pop("dim", None)
    return width


def embeds_numbers(groups: Groups) -> bool:
    """Return True if some numeric feature has an embedding of its own."""
    numbers = [spec for spec in groups.features.read.values() if spec.settings.get("kind") == "numeric"]
    with_dim = [spec for spec in numbers if "dim" in spec.settings]
    if with_dim and len(with_dim) < len(numbers):
        for spec in numbers:
            if "dim" not in spec.settings:
                spec.config.note("input_names", "differs", "scales a vector, as the other numbers of this model do")
    return bool(with_dim)


def convert_attention(group: Section, groups: Groups) -> dict[str, Any]:
    """Convert the attentions inside a tower."""
    units: dict[str, Any] = {}
    for attention in group.all("sequence_features"):
        dnn = attention.section("seq_dnn")
        unit = convert_attention_unit(dnn)
        if not attention.get("need_key_feature", True):
            unit = unit | {"key": False}
        for history in groups.histories.use(attention):
            units[history] = unit
    return units
