"""Conversion of EasyRec's models of several tasks: their labels, and the layers below the towers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from longrec.features.fields import RESERVED_NAMES
from longrec.interop.easyrec_groups import (
    Groups,
    check_loss,
    convert_attention,
    convert_layers,
    convert_plain_layers,
    embeds_numbers,
)
from longrec.interop.easyrec_rows import Rows
from longrec.interop.easyrec_section import Section

_LABEL = "label"
"""Name of the schema's label in a model of several tasks. No other task may have it."""
_TOWERS = {
    "mmoe": ("task_towers",),
    "ple": ("task_towers",),
    "simple_multi_task": ("task_towers",),
    "dbmtl": ("task_towers",),
    "esmm": ("cvr_tower", "ctr_tower"),
}
"""Settings of a model -> fields with its towers, that of the schema's label first."""


class Tasks:
    """The towers of a model of several tasks. Empty for a model of one label.

    Attributes:
        towers: one per task, that of the schema's label first.
        columns: the label of each, a column of the rows.
        names: the name of each in the schema.
        weights: of the losses.
        metrics: the metrics of the towers.
    """

    def __init__(self, top: Section) -> None:
        model = top.section("model_config")
        settings = model.written_field("model") if model.present else None
        self.towers: list[Section] = []
        self.columns: list[str] = []
        self.names: list[str] = []
        self.weights: list[float] = []
        self.metrics: list[Section] = []
        self._esmm = settings == "esmm"
        if settings not in _TOWERS:
            return
        own, fields = model.section(settings), top.section("data_config").all("label_fields")
        self.towers = [tower for field in _TOWERS[settings] for tower in own.all(field)]
        if len(self.towers) < len(_TOWERS[settings]):
            own.reading.fault(
                own.position, f"{own.path} lacks {' or '.join(_TOWERS[settings])}; expected one tower per task"
            )
        for number, tower in enumerate(self.towers):
            self._add(tower, fields[number] if number < len(fields) else None, fields)

    def _add(self, tower: Section, default: str | None, fields: list[str]) -> None:
        tower.get("tower_name")
        column = tower.get("label_name", default)
        if column is None:
            tower.reading.fault(
                tower.position, f"{tower.path} has no label; expected label_name, or one more label_fields"
            )
        elif column not in fields:
            choices = ", ".join(fields) or "none"
            tower.fault("label_name", f"is {column!r}; expected one of data_config.label_fields: {choices}")
        elif column in self.columns:
            tower.reading.fault(tower.position, f"{tower.path} learns {column} again; expected one tower per label")
        else:
            self.columns.append(column)
            self.names.append(column)
            self.weights.append(self._read_weight(tower))

    def _read_weight(self, tower: Section) -> float:
        check_loss(tower)
        for metrics in tower.all("metrics_set"):
            metrics.get("auc")
            metrics.section("gauc").get("reduction")
            self.metrics.append(metrics)
        weight: float = tower.get("weight", 1.0)
        for loss in tower.all("losses")[:1]:
            weight *= loss.get("weight", 1.0)
            loss.mark_carried("weight")
        if weight <= 0:
            tower.fault("weight", f"is {weight:g}; expected a number above 0, or no such tower")
        tower.record_origin(
            f"model.tasks.{self.names[-1]}" if len(self.columns) > 1 else "model.label_weight", "weight"
        )
        return weight

    def assign_names(self, taken: Iterable[str]) -> None:
        """Assign to the labels, except the schema's, names that no feature has."""
        names_in_use = {_LABEL, *RESERVED_NAMES, *taken}
        for number, column in enumerate(self.columns):
            name = re.sub(r"[^\w-]", "_", column)
            while number and name in names_in_use:
                name += "_"
            names_in_use.add(name)
            self.names[number] = name
            self.towers[number].record_origin(f"data.schema.features.{name}", "label_name")

    def strip_tower_name(self, metric: str) -> str:
        """Return a metric of the tower of the schema's label by its name in a model of one task."""
        names = [self.towers[0].get("tower_name", "")] if self.towers else []
        own = [f"_{name}" for name in [*names, *(["ctcvr"] if self._esmm else [])] if name]
        return next((metric.removesuffix(end) for end in own if metric.endswith(end)), metric)

    def convert_labels(self, rows: Rows) -> dict[str, dict[str, Any]]:
        """Return the labels, except the schema's, as feedback features."""
        labels: dict[str, dict[str, Any]] = {}
        for name, column in list(zip(self.names, self.columns))[1:]:
            if rows.types.get(column) == "float":
                rows.types[column] = "int"  # 0 and 1, distinct like ids
                rows.defaults[column] = int(rows.defaults.get(column) or 0)
            labels[name] = {"kind": "id", "feedback": True} | ({"column": column} if name != column else {})
        return labels

    def convert_tasks(self) -> dict[str, Any]:
        """Return ``tasks`` and ``label_weight`` of the model section."""
        settings: dict[str, Any] = {"tasks": dict(zip(self.names[1:], self.weights[1:]))}
        if self.weights and self.weights[0] != 1:
            settings["label_weight"] = self.weights[0]
        return settings


def convert_simple(own: Section, groups: Groups, tasks: Tasks) -> dict[str, Any]:
    """Convert SimpleMultiTask: one network per task over all features."""
    form = _SharedLayers()
    return {
        "name": "shared_bottom",
        **_convert_base(own, groups),
        "mlp": [],
        **_convert_towers(tasks, form),
        **form.settings,
    }


def convert_mmoe(own: Section, groups: Groups, tasks: Tasks) -> dict[str, Any]:
    """Convert MMoE: experts with gates. ``experts`` is the older form of ``expert_dnn`` and ``num_expert``."""
    form, several = _SharedLayers(), own.all("experts")
    if own.has("expert_dnn"):
        settings = {"experts": own.get("num_expert", 0), "expert": form.read_units(own.section("expert_dnn"))}
        own.record_origin("model.experts", "num_expert")
        if not settings["experts"]:
            own.fault("num_expert", "is missing or 0; expected the number of experts")
    elif several:
        settings = {
            "experts": len(several),
            "expert": form.unify_units(([one.section("dnn")] for one in several), "experts"),
        }
    else:
        own.reading.fault(own.position, f"{own.path} has no experts; expected expert_dnn and num_expert")
        settings = {}
    return {"name": "mmoe", **_convert_base(own, groups), **settings, **_convert_towers(tasks, form), **form.settings}


def convert_ple(own: Section, groups: Groups, tasks: Tasks) -> dict[str, Any]:
    """Convert PLE: levels of task-specific and shared experts."""
    form, settings = _SharedLayers(), dict[str, Any]()
    levels: list[Section] = own.all("extraction_networks")
    if not levels:
        own.reading.fault(own.position, f"{own.path} has no extraction_networks; expected one at least")
    for level in levels:
        nets = [level.section(net) for net in ("task_expert_net", "share_expert_net") if level.has(net)]
        level_settings = {
            "own": level.get("expert_num_per_task", 1),
            "expert": form.unify_units(([net] for net in nets), "experts"),
        }
        level_settings |= {"experts": level.get("share_num")} if level.has("share_num") else {}
        settings = {**level_settings, **settings}
        for key, name in (("own", "expert_num_per_task"), ("experts", "share_num")):
            if level_settings.get(key, 0) != settings.get(key, 0):
                level.note(name, "differs", f"all levels have as many as the first that has some: {settings[key]}")
    if levels and "experts" not in settings:
        levels[0].reading.fault(
            levels[0].position, f"{levels[0].path} has no share_num; expected one shared expert at least"
        )
    return {
        "name": "ple", **_convert_base(own, groups), "levels": len(levels), **settings, **_convert_towers(tasks, form),
        **form.settings,
    }  # fmt: skip


def convert_esmm(own: Section, groups: Groups, tasks: Tasks) -> dict[str, Any]:
    """Convert ESMM: a click and a conversion after it."""
    form, under = _SharedLayers(), dict[str, dict[str, Any]]()
    for tower in own.all("groups"):
        name = tower.get("input", "")
        if name in under:
            tower.fault("input", f"names the group {name!r} again; expected one tower per group")
        elif groups.find(name, tower) is not None:
            under[name] = convert_layers(tower.section("dnn"))
    settings: dict[str, Any] = {"name": "esmm", **_convert_base(own, groups, under)}
    if len(tasks.columns) == 2:
        settings |= {"click": tasks.names[1], "click_weight": tasks.weights[1], "label_weight": tasks.weights[0]}
        own.record_origin("model.click", "ctr_tower")
    mean = "losses are means over the rows of a batch (there: sums), so that regularization weighs more"
    own.reading.note(own.position, own.path, "differs", mean)
    units = _convert_tower_units(tasks, form)
    if not units:
        units = [128, 64]
        own.note("cvr_tower", "differs", f"without layers of its own it has {units}")
    return {**settings, "mlp": units, **form.settings}


def convert_dbmtl(own: Section, groups: Groups, tasks: Tasks) -> dict[str, Any]:
    """Convert DBMTL: a bottom, experts over it if there are any, and towers that do not read each other."""
    form, several = _SharedLayers(), own.get("num_expert", 0)
    if not several:
        units = form.read_units(own.section("bottom_dnn")) if own.has("bottom_dnn") else []
        return {
            "name": "shared_bottom",
            **_convert_base(own, groups),
            "mlp": units,
            **_convert_towers(tasks, form),
            **form.settings,
        }
    own.record_origin("model.experts", "num_expert")
    settings = {"experts": several, "expert": form.read_units(own.section("expert_dnn"))}
    under = {groups.find_whole(own): convert_layers(own.section("bottom_dnn"))} if own.has("bottom_dnn") else {}
    return {
        "name": "mmoe",
        **_convert_base(own, groups, under),
        **settings,
        **_convert_towers(tasks, form),
        **form.settings,
    }


MAPPERS: dict[str, tuple[str, Callable[[Section, Groups, Tasks], dict[str, Any]]]] = {
    "SimpleMultiTask": ("simple_multi_task", convert_simple),
    "MMoE": ("mmoe", convert_mmoe),
    "PLE": ("ple", convert_ple),
    "ESMM": ("esmm", convert_esmm),
    "DBMTL": ("dbmtl", convert_dbmtl),
}
"""Class name -> field of its settings, and mapper."""


class _SharedLayers:
    """Hidden units of a model's networks, which share one activation, normalization and dropout."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._units: dict[str, list[int]] = {}

    def read_units(self, dnn: Section) -> list[int]:
        """Return the hidden units of a network."""
        settings = convert_plain_layers(dnn)
        units: list[int] = settings.pop("mlp")
        for key, value in settings.items():
            if self.settings.setdefault(key, value) != value:
                shared = str(self.settings[key]).lower()
                dnn.note(_FIELDS[key], "differs", f"one for all networks of the model: {shared}")
        return units

    def unify_units(self, networks: Iterable[Iterable[Section]], what: str) -> list[int]:
        """Return the hidden units of networks of one role: those of the first network, for all. Empty without networks.

        Args:
            networks: the stacked layers of each.
        """
        for network in networks:
            sizes = [(dnn, self.read_units(dnn)) for dnn in network]
            units = [unit for _, own in sizes for unit in own]
            if sizes and self._units.setdefault(what, units) != units:
                explanation = f"all {what} have those of the first: {self._units[what]}"
                sizes[0][0].note("hidden_units", "differs", explanation)
        return self._units.get(what, [])


_LAYERS = {"TaskTower": ("dnn",), "BayesTaskTower": ("dnn", "relation_dnn")}
"""The layers of a tower. The second network reads the first and other towers, of which none may be named."""
_FIELDS = {"activation": "activation", "batch_norm": "use_bn", "dropout": "dropout_ratio"}


def _convert_towers(tasks: Tasks, form: _SharedLayers) -> dict[str, Any]:
    """Return ``tower`` and the labels."""
    return {"tower": _convert_tower_units(tasks, form), **tasks.convert_tasks()}


def _convert_tower_units(tasks: Tasks, form: _SharedLayers) -> list[int]:
    """Return the layers of every tower: those of the first tower with layers."""
    networks = [[tower.section(dnn) for dnn in _LAYERS[tower.message] if tower.has(dnn)] for tower in tasks.towers]
    units, first = form.unify_units(networks, "towers"), next((network[0] for network in networks if network), None)
    if first is not None and not all(networks):
        explanation = f"all towers have the layers of those with some: {units}"
        first.reading.note(first.position, first.path, "differs", explanation)
    return units


def _convert_base(own: Section, groups: Groups, under: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return ``base``: towers over groups with layers of their own, attention over histories, or plain numbers.

    Empty otherwise, which means all features as they are.

    Args:
        under: layers by group. Default: the one group that all tasks read, without layers.
    """
    layers_by_group = under or {groups.find_whole(own): {"mlp": []}}
    towers, plain = {}, not under
    for name, form in layers_by_group.items():
        if name not in groups.by_name:
            continue
        inside = convert_attention(groups.by_name[name], groups)
        of = groups.read(name)
        if not of:
            groups.by_name[name].fault("feature_names", "have none that is carried; expected one feature at least")
        plain = plain and not inside
        towers[re.sub(r"[^\w-]", "_", name)] = {"features": of, **form, **({"din": inside} if inside else {})}
    vectors = embeds_numbers(groups)
    numbers = any(spec.settings.get("kind") == "numeric" for spec in groups.features.read.values())
    if not towers or (plain and not numbers):
        return {}
    base = {"name": "multi_tower", "towers": towers, "din": {}, "final": {"mlp": []}, "input_norm": False}
    own.reading.origins["model.base"] = own.position
    return {"base": base | ({"embed_numbers": True} if vectors else {})}
