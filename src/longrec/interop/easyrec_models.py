"""Conversion of EasyRec's models: one table from class names to mappers, or to the reason for having none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_features import Features
from longrec.interop.easyrec_groups import (
    Groups,
    check_loss,
    choose_width,
    convert_attention,
    convert_attention_unit,
    convert_layers,
    convert_plain_layers,
    embeds_numbers,
)
from longrec.interop.easyrec_histories import Histories
from longrec.interop.easyrec_section import Section
from longrec.interop.easyrec_tasks import MAPPERS as MULTI_TASK_MAPPERS
from longrec.interop.easyrec_tasks import Tasks

Mapper = Callable[[Section, Groups, Tasks], dict[str, Any]]


def convert_model(
    config: Section, features: Features, histories: Histories, tasks: Tasks
) -> tuple[dict[str, Any], Section | None]:
    """Return the ``model`` section, and the section that holds ``l2_regularization``."""
    if not config.present:
        config.reading.fault(config.position, "model_config is missing; expected a model")
        return {}, None
    name = config.get("model_class", "")
    config.record_origin("model", "model_class")
    config.record_origin("model.name", "model_class")
    check_loss(config)
    groups = Groups(config, features, histories)
    entry = MODELS.get(name)
    if entry is None:
        near = nearest(name, MODELS)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(MAPPERS))}"
        config.fault("model_class", f"is {name!r}, which is no model of EasyRec; {hint}")
        return {}, None
    if isinstance(entry, str):
        config.fault("model_class", f"is {name}, which is {describe_refusal(name, entry)}")
        return {}, None
    field_name, mapper = entry
    own = config.section(field_name)
    if not own.present:
        config.fault("model_class", f"is {name} without its settings; expected {field_name} {{ ... }}")
        return {}, None
    model = mapper(own, groups, tasks)
    config.reading.origins.setdefault("model.towers", own.position)
    return model, own


def _convert_multi_tower(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    """Convert towers over groups and attention towers over histories."""
    towers: dict[str, Any] = {}
    for tower in own.all("towers"):
        name = tower.get("input", "")
        group = groups.find(name, tower)
        if group is None:
            continue
        of = groups.read(name)
        settings: dict[str, Any] = {"features": of, **convert_layers(tower.section("dnn"))}
        inside = convert_attention(group, groups)
        settings |= {"din": inside} if inside else {}
        if not of and not inside:
            tower.fault("input", f"names the group {name!r}, of which no feature is carried")
        key = re.sub(r"[^\w-]", "_", name)
        if key in towers:
            tower.fault("input", f"names the group {name!r} again; expected one tower per group")
        towers[key] = settings if of else {key: value for key, value in settings.items() if key != "features"}
        own.reading.origins[f"model.towers.{key}"] = tower.position
    din: dict[str, Any] = {}
    attention = {group.get("group_name") or "": group for group in groups.config.all("seq_att_groups")}
    for tower in own.all("din_towers"):
        name = tower.get("input", "")
        if name not in attention:
            near = nearest(name, attention)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(attention) or 'none'}"
            tower.fault("input", f"names the attention group {name!r}, which is not there; {hint}")
            continue
        unit = convert_attention_unit(tower.section("dnn"))
        for history in groups.histories.use(attention[name]):
            din[history] = unit
            own.reading.origins[f"model.din.{history}"] = tower.position
    if not towers and not din:
        own.reading.fault(own.position, f"{own.path} has no towers; expected one at least")
    final = convert_layers(own.section("final_dnn"))
    own.record_origin("model.final", "final_dnn")
    settings = {"name": "multi_tower", "towers": towers, "din": din, "final": final}
    settings = {key: value for key, value in settings.items() if value or key != "towers"}
    return settings | ({"embed_numbers": True} if embeds_numbers(groups) else {})


def _make_mapper(name: str) -> Mapper:
    """Return the mapper of a model of a wide and a deep part over all features."""

    def convert(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
        own.get("wide_output_dim")
        width = {"embedding_dim": choose_width(groups, name)} if name == "deepfm" else {}
        groups.read_all()
        _note_smaller_groups(groups, name)
        own.record_origin("model.mlp", "dnn")
        return {"name": name, **width, **convert_plain_layers(own.section("dnn"))}

    return convert


def _note_smaller_groups(groups: Groups, model: str) -> None:
    """Note groups that hold fewer features than the model reads."""
    read = {name: set(groups.read(name)) for name in groups.by_name}
    everything = set().union(*read.values()) if read else set()
    for name, of in read.items():
        if of != everything:
            explanation = f"every part of {model} reads all features, {name} too"
            groups.by_name[name].note("feature_names", "differs", explanation)


def _convert_dcn(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    groups.read_all()
    _note_smaller_groups(groups, "dcn")
    deep, cross = own.section("deep_tower"), own.section("cross_tower")
    for tower in (deep, cross):
        groups.find(tower.get("input", ""), tower)
    cross.record_origin("model.cross_layers", "cross_num")
    deep.record_origin("model.mlp", "dnn")
    return {"name": "dcn", "cross_layers": cross.get("cross_num", 3), **convert_plain_layers(deep.section("dnn"))}


def _convert_fm(own: Section, groups: Groups, _: Tasks) -> dict[str, Any]:
    width = choose_width(groups, "fm")
    _note_smaller_groups(groups, "fm")
    return {"name": "fm", "embedding_dim": width}


MAPPERS: dict[str, tuple[str, Mapper]] = {
    "MultiTower": ("multi_tower", _convert_multi_tower),
    "MultiTowerDIN": ("multi_tower", _convert_multi_tower),
    "WideAndDeep": ("wide_and_deep", _make_mapper("wide_deep")),
    "DeepFM": ("deepfm", _make_mapper("deepfm")),
    "DCN": ("dcn", _convert_dcn),
    "FM": ("fm", _convert_fm),
    **MULTI_TASK_MAPPERS,
}
_RETRIEVAL, _LATER = "it retrieves items", "there is no such ranker yet"
_OWN = {"DSSM": "dssm", "MIND": "mind"}
"""Retrievers of LongRec, whose samples are events and not the rows of EasyRec."""
MODELS: dict[str, tuple[str, Mapper] | str] = {
    **MAPPERS,
    **dict.fromkeys(("DSSM", "DSSM_SENet", "MIND", "DAT", "DropoutNet", "PDN", "MultiTowerRecall"), _RETRIEVAL),
    **dict.fromkeys(("CoMetricLearningI2I", "DSSM_DERIVATIVES", "MatchModel"), _RETRIEVAL),
    **dict.fromkeys(
        ("AITM", "MultiTowerBST", "AutoInt", "DLRM", "CMBF", "Uniter", "RocketLaunching", "xDeepFM"), _LATER
    ),
    **dict.fromkeys(("RankModel", "MultiTaskModel"), "it is built of components (backbone)"),
    "DummyModel": "it is a test of the input",
}


def describe_refusal(name: str, reason: str) -> str:
    """Return the reason why a model is refused."""
    if name in _OWN:
        return f"not converted: {reason}; write a config of a log of events with model: {_OWN[name]}"
    return f"not in this version: {reason}"


"""Class name -> field of its settings and mapper, or the reason for having none. A new model is one line."""
