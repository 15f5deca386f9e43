"""States of users: programs of a model whose state of constant size each event updates, see ``models/core/memory.py``.

The program ``score`` has one further input per history, ``s.HISTORY`` ``[1, W]``: the state before the events of its
request. The program ``update.HISTORY`` maps the states of B users and one event of each to the next states.

A server folds the events of a user into the state that are older than every delay, and sends the others with each
request. So nothing may enter a state that later changes, or that depends on the time of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longrec.errors import BundleError
from longrec.exporting.bundle import StateFacts
from longrec.exporting.inputs import STATE, UPDATE, Input, ProgramFacts, list_history_inputs
from longrec.exporting.program import ProgramModule, build_columns
from longrec.features.batch import HistoryBatch
from longrec.features.entity_table import EntityTable
from longrec.features.fields import COMPUTED
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import compute_filter_delay, list_event_columns
from longrec.models.core.base import Model
from longrec.models.core.memory import MemoryRanker

DO = "remove it from the features of the history and train again, or export without states"


class UpdateProgram(ProgramModule):
    """The states of B users after one event of each, ``[B, W]``."""

    model: MemoryRanker
    outputs = (STATE,)

    def __init__(self, model: MemoryRanker, history: str, inputs: Sequence[Input]) -> None:
        super().__init__(model, inputs)
        self.history = history

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the next states."""
        by_name = {entry.name: tensor for entry, tensor in zip(self.inputs, tensors)}
        start_BW = by_name[f"s.{self.history}"]
        events = [entry for entry in self.inputs if not entry.name.startswith("s.")]
        columns, _ = build_columns(events, by_name)
        offsets = torch.arange(2) * start_BW.shape[0]
        return self.model.update_states(self.history, start_BW, HistoryBatch(columns[f"h.{self.history}"], offsets))


def list_state_inputs(model: MemoryRanker) -> list[Input]:
    """List the inputs of the states of the score program."""
    return [Input(f"s.{history}", "FP32", "user", "value", 0, get_width(model, history)) for history in _names(model)]


def build_update_programs(model: MemoryRanker) -> dict[str, ProgramModule]:
    """Return the programs that update the states of each history, by name, ready to be traced."""
    programs: dict[str, ProgramModule] = {}
    for history in _names(model):
        # One event per user, so that states and events have one length.
        state = Input(f"s.{history}", "FP32", f"h.{history}", "value", 0, get_width(model, history))
        inputs = [*list_history_inputs(model.fields, history), state]
        programs[f"{UPDATE}{history}"] = UpdateProgram(model, history, inputs).eval()
    return programs


def describe_states(model: MemoryRanker, fitted: FittedSchema) -> dict[str, StateFacts]:
    """Return the description of the states of each history."""
    facts = {}
    for history in _names(model):
        memory = model.get_memory(history)
        with torch.no_grad():
            start: list[float] = memory.pack(memory.start_state(1))[0].tolist()
        facts[history] = StateFacts(start, compute_longest_delay(fitted, history))
    return facts


def compute_longest_delay(fitted: FittedSchema, history: str) -> int:
    """Compute the time after an event until all its columns in a history, and its place in it, are final."""
    columns = fitted.schema.histories[history].features
    read = [name for name in list_event_columns(fitted) if name in columns]
    delays = [fitted.schema.available_after(name) for name in read if fitted.schema.features[name].feedback]
    return max([0, compute_filter_delay(fitted, history), *delays])


def check_states(model: Model, fitted: FittedSchema, items: EntityTable) -> MemoryRanker:
    """Check that a model has states, and that only final values enter them.

    Raises:
        BundleError: with every fault.
    """
    if not isinstance(model, MemoryRanker):
        problem = f"{type(model).__name__}, which has no state of a user that an event updates"
        raise BundleError("--states", problem, "one of hpmn, mimn", "export it without states")
    schema, faults = fitted.schema, []
    if schema.prejoined:
        faults.append("the histories are in the requests")
    for history in _names(model):
        own = schema.histories[history]
        if own.source is not None:
            faults.append(f"histories.{history} is one of tokens")
            continue
        for column in own.features:
            where = f"histories.{history}.features: {column!r}"
            if column in COMPUTED:
                faults.append(f"{where} depends on the time of the request or on the first event of the history")
            elif column in items.dated:
                faults.append(f"{where} has versions, and a history has the version at the time of the request")
            elif column in schema.features and schema.features[column].available_at is not None:
                faults.append(f"{where} becomes available at any time (available_at), so that no event is final")
        for column in own.where:
            named = [n for n, f in schema.features.items() if f.available_at and schema.column(n) == column]
            faults += [f"histories.{history}.where: {column!r} becomes available at any time" for _ in named]
    if faults:
        raise BundleError("--states", "; ".join(faults), "histories of columns that never change", DO)
    return model


def get_width(model: MemoryRanker, history: str) -> int:
    """Return W, the width of a packed state."""
    memory = model.get_memory(history)
    return int(memory.pack(memory.start_state(1)).shape[1])


def list_updates(programs: Mapping[str, ProgramFacts]) -> dict[str, str]:
    """Return the name of the program that updates the states of each history."""
    return {name.removeprefix(UPDATE): name for name in programs if name.startswith(UPDATE)}


def _names(model: MemoryRanker) -> list[str]:
    return list(model.fields.histories)
