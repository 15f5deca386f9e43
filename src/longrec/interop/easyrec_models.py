"""EasyRec's models in the words of ours: one table from class names to mappers, or to the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_features import Features
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_parts import (
    Groups,
    attention_inside,
    check_loss,
    embeds_numbers,
    layers,
    one_width,
    plain_layers,
    unit_of,
)
from longrec.interop.easyrec_section import Section
from longrec.interop.easyrec_tasks import MAPPED as SEVERAL
from longrec.interop.easyrec_tasks import Tasks

Mapper = Callable[[Section, Groups, Tasks], dict[str, Any]]


def model_words(
    config: Section, features: Features, histories: Histories, tasks: Tasks
) -> tuple[dict[str, Any], Section | None]:
    """The ``model`` section, and the settings that hold ``l2_regularization``."""
    if not config.there:
        config.reading.fault(config.place, "model_config is missing; expected a model")
        return {}, None
    name = config.get("model_class", "")
    config.origin("model", "model_class")
    config.origin("model.name", "model_class")
    check_loss(config)
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
    words = mapper(own, groups, tasks)
    config.reading.origins.setdefault("model.towers", own.place)
    return words, own


def _multi_tower(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    """Towers over groups, attention towers over histories."""
    towers: dict[str, Any] = {}
    for tower in own.all("towers"):
        name = tower.get("input", "")
        group = groups.find(name, tower)
        if group is None:
            continue
        of = groups.read(name)
        words: dict[str, Any] = {"of": of, **layers(tower.section("dnn"))}
        inside = attention_inside(group, groups)
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
        unit = unit_of(tower.section("dnn"))
        for history in groups.histories.use(attention[name]):
            din[history] = unit
            own.reading.origins[f"model.din.{history}"] = tower.place
    if not towers and not din:
        own.reading.fault(own.place, f"{own.path} has no towers; expected one at least")
    final = layers(own.section("final_dnn"))
    own.origin("model.final", "final_dnn")
    words = {"name": "multi_tower", "towers": towers, "din": din, "final": final}
    words = {key: value for key, value in words.items() if value or key != "towers"}
    return words | ({"embed_numbers": True} if embeds_numbers(groups) else {})


def _deep(name: str) -> Mapper:
    """A model of a wide and a deep part over all features."""

    def mapped(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
        own.get("wide_output_dim")
        width = {"embedding_dim": one_width(groups, name)} if name == "deepfm" else {}
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


def _dcn(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    groups.read_all()
    _same_features(groups, "dcn")
    deep, cross = own.section("deep_tower"), own.section("cross_tower")
    for tower in (deep, cross):
        groups.find(tower.get("input", ""), tower)
    cross.origin("model.cross_layers", "cross_num")
    deep.origin("model.mlp", "dnn")
    return {"name": "dcn", "cross_layers": cross.get("cross_num", 3), **plain_layers(deep.section("dnn"))}


def _fm(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    width = one_width(groups, "fm")
    _same_features(groups, "fm")
    return {"name": "fm", "embedding_dim": width}


MAPPED: dict[str, tuple[str, Mapper]] = {
    "MultiTower": ("multi_tower", _multi_tower),
    "MultiTowerDIN": ("multi_tower", _multi_tower),
    "WideAndDeep": ("wide_and_deep", _deep("wide_deep")),
    "DeepFM": ("deepfm", _deep("deepfm")),
    "DCN": ("dcn", _dcn),
    "FM": ("fm", _fm),
    **SEVERAL,
}
_RETRIEVAL, _LATER = "it retrieves items", "there is no such ranker yet"
MODELS: dict[str, tuple[str, Mapper] | str] = {
    **MAPPED,
    **dict.fromkeys(("DSSM", "DSSM_SENet", "MIND", "DAT", "DropoutNet", "PDN", "MultiTowerRecall"), _RETRIEVAL),
    **dict.fromkeys(("CoMetricLearningI2I", "DSSM_DERIVATIVES", "MatchModel"), _RETRIEVAL),
    **dict.fromkeys(
        ("AITM", "MultiTowerBST", "AutoInt", "DLRM", "CMBF", "Uniter", "RocketLaunching", "xDeepFM"), _LATER
    ),
    **dict.fromkeys(("RankModel", "MultiTaskModel"), "it is built of components (backbone)"),
    "DummyModel": "it is a test of the input",
}
"""Class name -> field of its settings and mapper, or why there is none. A model that lands is one line."""
