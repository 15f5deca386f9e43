"""EasyRec's models in the words of ours: one table from class names to mappers, or to the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_features import Features
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_section import Section

_ACTIVATIONS = {"": "relu", "leaky_relu": "prelu"} | {
    name: name for name in ("relu", "prelu", "dice", "sigmoid", "tanh", "gelu")
}
_CROSS_ENTROPY = ("CLASSIFICATION", "CROSS_ENTROPY_LOSS", "BINARY_CROSS_ENTROPY_LOSS")
_ITEM_GROUP = re.compile(r"(^|_)(item|items|ad|ads|goods|product|sku|candidate|target)(_|$)")
_ITEM_FEATURE = re.compile(r"^(item|adgroup|ad|goods|product|sku|candidate|target)_")
_ATTENTION_UNITS = (128, 64, 32, 1)
"""What EasyRec takes for an attention inside a group without ``seq_dnn``."""


@dataclass
class Groups:
    """The feature groups of a model, and what of them it has read."""

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
        """The group that ``input`` of a tower names, or None with a fault."""
        group = self.by_name.get(name)
        if group is None:
            near = nearest(name, self.by_name)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(self.by_name) or 'none'}"
            section.fault("input", f"names the group {name!r}, which is not there; {hint}")
        return group

    def read(self, name: str) -> list[str]:
        """The features of a group, by their names in the schema."""
        group = self.by_name[name]
        if name not in self._read:
            made: list[str] = []
            of_item = _ITEM_GROUP.search(name.lower()) is not None
            for feature in group.all("feature_names"):
                spec = self.features.find(feature, group, "feature_names")
                if spec is None:
                    continue
                sequence = spec.kind == "SequenceFeature"
                candidate = not sequence and (of_item or _ITEM_FEATURE.match(feature.lower()) is not None)
                ours = self.features.use(spec, candidate=candidate)
                if ours is not None and ours not in made:
                    made.append(ours)
            self._read[name] = made
        return self._read[name]

    def read_all(self) -> None:
        """Read every group; what a model of plain fields cannot use of them is noted."""
        for name, group in self.by_name.items():
            self.read(name)
            group.note("sequence_features", "not carried", "this model reads no histories") if group.has(
                "sequence_features"
            ) else None


Mapper = Callable[[Section, Groups], dict[str, Any]]


def model_words(config: Section, features: Features, histories: Histories) -> tuple[dict[str, Any], Section | None]:
    """The ``model`` section, and the settings that hold ``l2_regularization``."""
    if not config.there:
        config.reading.fault(config.place, "model_config is missing; expected a model")
        return {}, None
    name = config.get("model_class", "")
    config.origin("model", "model_class")
    config.origin("model.name", "model_class")
    _check_loss(config)
    groups = Groups(config, features, histories)
    known = MODELS.get(name)
    if known is None:
        near = nearest(name, MODELS)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(MAPPED))}"
        config.fault("model_class", f"is {name!r}, which is no model of EasyRec; {hint}")
        return {}, None
    if isinstance(known, str):
        config.fault("model_class", f"is {name}, which is not in this version: {known}")
        return {}, None
    settings, mapper = known
    own = config.section(settings)
    if not own.there:
        config.fault("model_class", f"is {name} without its settings; expected {settings} {{ ... }}")
        return {}, None
    words = mapper(own, groups)
    config.reading.origins.setdefault("model.towers", own.place)
    return words, own


def _check_loss(config: Section) -> None:
    for section in (config, *config.all("losses")):
        loss = section.get("loss_type", "CLASSIFICATION")
        if loss not in _CROSS_ENTROPY:
            section.fault("loss_type", f"is {loss}; expected {' or '.join(_CROSS_ENTROPY)}: one label of 0 and 1")
    if config.get("num_class", 1) != 1:
        config.fault("num_class", f"is {config.get('num_class')}; expected 1: one label of 0 and 1")
    if len(config.all("losses")) > 1:
        config.fault("losses", "are several; expected one")


# ---- parts ----


def layers(dnn: Section, *, default: tuple[int, ...] = ()) -> dict[str, Any]:
    """An MLP: ``mlp``, ``activation``, ``batch_norm`` and ``dropout`` (one a layer)."""
    units = dnn.all("hidden_units") or list(default)
    if not units:
        dnn.fault("hidden_units", "is missing; expected the units of one layer at least")
    units = [] if units == [0] else units
    words: dict[str, Any] = {"mlp": units, "activation": _activation(dnn), "batch_norm": dnn.get("use_bn", True)}
    dropout = dnn.all("dropout_ratio")
    if dropout and len(dropout) != len(units):
        dnn.fault("dropout_ratio", f"has {len(dropout)} numbers for {len(units)} layers; expected one a layer")
    elif dropout:
        words["dropout"] = dropout
    return words


def _activation(dnn: Section) -> str:
    given = dnn.get("activation", "tf.nn.relu")
    name = given.lower().rpartition(".")[2] if given.lower().startswith("tf.") else given.lower()
    if name == "leaky_relu":
        dnn.note("activation", "differs", "prelu, whose slope is learnt")
    if name not in _ACTIVATIONS:
        dnn.fault("activation", f"is {given!r}; expected one of {', '.join(filter(None, _ACTIVATIONS))}")
    if not given:
        dnn.note("activation", "differs", "relu")
    return _ACTIVATIONS.get(name, "relu")


def plain_layers(dnn: Section) -> dict[str, Any]:
    """An MLP of a model whose dropout is one share for all layers."""
    words = layers(dnn)
    shares = words.pop("dropout", [0.0])
    if len(set(shares)) > 1:
        dnn.note("dropout_ratio", "differs", f"one share for all layers: {shares[0]:g}")
    return words | {"dropout": shares[0]}


def _unit(dnn: Section) -> dict[str, Any]:
    """The activation unit of an attention, whose last layer of one unit is always there."""
    words = layers(dnn, default=_ATTENTION_UNITS)
    units = words["mlp"]
    if units and units[-1] != 1:
        dnn.fault("hidden_units", f"end with {units[-1]}; expected 1, the weight of an event")
    if len(units) == 1:
        dnn.fault("hidden_units", "are the weight alone; expected one hidden layer at least before it")
    if "dropout" in words:
        words["dropout"] = words["dropout"][:-1]
    return words | {"mlp": units[:-1]}


def _one_width(groups: Groups, model: str) -> int:
    """The width that all features have where a model multiplies them; others are noted."""
    groups.read_all()
    dims = [spec.words["dim"] for spec in groups.features.read.values() if "dim" in spec.words]
    width: int = max(set(dims), key=lambda dim: (dims.count(dim), dim)) if dims else 16
    for spec in groups.features.read.values():
        if spec.words.get("dim", width) != width:
            spec.config.note("embedding_dim", "not carried", f"{model} has one width for all features: {width}")
        spec.words.pop("dim", None)
    return width


def _numbers(groups: Groups) -> bool:
    """Whether some number asks for a vector of its own."""
    numbers = [spec for spec in groups.features.read.values() if spec.words.get("kind") == "dense"]
    asking = [spec for spec in numbers if "dim" in spec.words]
    if asking and len(asking) < len(numbers):
        for spec in numbers:
            if "dim" not in spec.words:
                spec.config.note("input_names", "differs", "scales a vector, as the other numbers of this model do")
    return bool(asking)


# ---- models ----


def _multi_tower(own: Section, groups: Groups) -> dict[str, Any]:
    """Towers over groups, attention towers over histories."""
    towers: dict[str, Any] = {}
    for tower in own.all("towers"):
        name = tower.get("input", "")
        group = groups.find(name, tower)
        if group is None:
            continue
        of = groups.read(name)
        words: dict[str, Any] = {"of": of, **layers(tower.section("dnn"))}
        inside = _inside(group, groups)
        words |= {"din": inside} if inside else {}
        if not of and not inside:
            tower.fault("input", f"names the group {name!r}, of which no feature is carried")
        key = re.sub(r"[^\w-]", "_", name)
        if key in towers:
            tower.fault("input", f"names the group {name!r} again; expected one tower a group")
        towers[key] = words if of else {key: value for key, value in words.items() if key != "of"}
        own.reading.origins[f"model.towers.{key}"] = tower.place
    din: dict[str, Any] = {}
    attention = {group.get("group_name") or "": group for group in groups.config.all("seq_att_groups")}
    for tower in own.all("din_towers"):
        name = tower.get("input", "")
        if name not in attention:
            near = nearest(name, attention)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(attention) or 'none'}"
            tower.fault("input", f"names the attention group {name!r}, which is not there; {hint}")
            continue
        unit = _unit(tower.section("dnn"))
        for history in groups.histories.use(attention[name]):
            din[history] = unit
            own.reading.origins[f"model.din.{history}"] = tower.place
    if not towers and not din:
        own.reading.fault(own.place, f"{own.path} has no towers; expected one at least")
    final = layers(own.section("final_dnn"))
    own.origin("model.final", "final_dnn")
    words = {"name": "multi_tower", "towers": towers, "din": din, "final": final}
    words = {key: value for key, value in words.items() if value or key != "towers"}
    return words | ({"embed_numbers": True} if _numbers(groups) else {})


def _inside(group: Section, groups: Groups) -> dict[str, Any]:
    """The attentions inside a tower."""
    found: dict[str, Any] = {}
    for attention in group.all("sequence_features"):
        dnn = attention.section("seq_dnn")
        unit = _unit(dnn)
        if not attention.get("need_key_feature", True):
            unit = unit | {"key": False}
        for history in groups.histories.use(attention):
            found[history] = unit
    return found


def _deep(name: str) -> Mapper:
    """A model of a wide and a deep part over all features."""

    def mapped(own: Section, groups: Groups) -> dict[str, Any]:
        own.get("wide_output_dim")
        width = {"embedding_dim": _one_width(groups, name)} if name == "deepfm" else {}
        groups.read_all()
        _same_features(groups, name)
        own.origin("model.mlp", "dnn")
        return {"name": name, **width, **plain_layers(own.section("dnn"))}

    return mapped


def _same_features(groups: Groups, model: str) -> None:
    """Note groups that part what the model reads as a whole."""
    read = {name: set(groups.read(name)) for name in groups.by_name}
    everything = set().union(*read.values()) if read else set()
    for name, of in read.items():
        if of != everything:
            words = f"every part of {model} reads all features, {name} too"
            groups.by_name[name].note("feature_names", "differs", words)


def _dcn(own: Section, groups: Groups) -> dict[str, Any]:
    groups.read_all()
    _same_features(groups, "dcn")
    deep, cross = own.section("deep_tower"), own.section("cross_tower")
    for tower in (deep, cross):
        groups.find(tower.get("input", ""), tower)
    cross.origin("model.cross_layers", "cross_num")
    deep.origin("model.mlp", "dnn")
    return {"name": "dcn", "cross_layers": cross.get("cross_num", 3), **plain_layers(deep.section("dnn"))}


def _fm(own: Section, groups: Groups) -> dict[str, Any]:
    width = _one_width(groups, "fm")
    _same_features(groups, "fm")
    return {"name": "fm", "embedding_dim": width}


MAPPED: dict[str, tuple[str, Mapper]] = {
    "MultiTower": ("multi_tower", _multi_tower),
    "MultiTowerDIN": ("multi_tower", _multi_tower),
    "WideAndDeep": ("wide_and_deep", _deep("wide_deep")),
    "DeepFM": ("deepfm", _deep("deepfm")),
    "DCN": ("dcn", _dcn),
    "FM": ("fm", _fm),
}
_RETRIEVAL, _TASKS, _LATER = "it retrieves items", "it learns several labels", "there is no such ranker yet"
MODELS: dict[str, tuple[str, Mapper] | str] = {
    **MAPPED,
    **dict.fromkeys(("DSSM", "DSSM_SENet", "MIND", "DAT", "DropoutNet", "PDN", "MultiTowerRecall"), _RETRIEVAL),
    **dict.fromkeys(("CoMetricLearningI2I", "DSSM_DERIVATIVES", "MatchModel"), _RETRIEVAL),
    **dict.fromkeys(("ESMM", "MMoE", "PLE", "DBMTL", "SimpleMultiTask", "AITM", "MultiTaskModel"), _TASKS),
    **dict.fromkeys(("MultiTowerBST", "AutoInt", "DLRM", "CMBF", "Uniter", "RocketLaunching", "xDeepFM"), _LATER),
    "RankModel": "it is built of components (backbone)",
    "DummyModel": "it is a test of the input",
}
"""Class name -> field of its settings and mapper, or why there is none. A model that lands is one line."""
