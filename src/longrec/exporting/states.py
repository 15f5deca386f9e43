"""States of users: programs of a model whose state of constant size events update, see ``models/core/stateful.py``.

The program ``score`` has one further input per history, ``s.HISTORY`` ``[1, W]``: the state before the events of its
request. The program ``update.HISTORY`` maps the states of B users and events of each to the next states: one event of
each, or of a model that updates chunks any number, by their positions ``p.HISTORY`` ``[B, P]`` in the events.

A server folds the events of a user into the state that are older than every delay, and sends the others with each
request. So nothing may enter a state that later changes, or that depends on the time of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.errors import BundleError
from longrec.exporting.bundle import StateFacts
from longrec.exporting.inputs import (
    POSITIONS,
    START,
    STATE,
    UPDATE,
    Input,
    ProgramFacts,
    list_history_inputs,
    list_positions,
    make_random_tensors,
)
from longrec.exporting.program import ProgramModule, build_columns
from longrec.features.batch import HistoryBatch
from longrec.features.entity_table import EntityTable
from longrec.features.fields import COMPUTED
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import compute_filter_delay, list_event_columns
from longrec.models.core.base import Model
from longrec.models.core.stateful import StatefulRanker

DO = "remove it from the features of the history and train again, or export without states"


class UpdateProgram(ProgramModule):
    """The states of B users after events of each, ``[B, W]``."""

    model: StatefulRanker
    outputs = (STATE,)

    def __init__(self, model: StatefulRanker, history: str, inputs: Sequence[Input]) -> None:
        super().__init__(model, inputs)
        self.history = history

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the next states."""
        by_name = {entry.name: tensor for entry, tensor in zip(self.inputs, tensors)}
        group = f"h.{self.history}"
        columns, sizes = build_columns([entry for entry in self.inputs if entry.name.startswith(group)], by_name)
        events = HistoryBatch(columns[group], torch.arange(2) * sizes[group])
        positions_BP = by_name.get(f"{POSITIONS}{self.history}")
        return self.model.update_states(self.history, by_name[f"{START}{self.history}"], events, positions_BP)

    def make_random_tensors(self, candidates: int, events: int | Sequence[int], seed: int) -> dict[str, NDArray[Any]]:
        """Make valid random inputs. Those of a model that updates chunks are of users with different numbers of events.

        Such a program is never run without events, nor traced with those of one user.
        """
        positions, state = f"{POSITIONS}{self.history}", f"{START}{self.history}"
        if all(entry.name != positions for entry in self.inputs):
            return super().make_random_tensors(candidates, events, seed)
        count = max(3, events if isinstance(events, int) else events[0])
        users, rng = max(1, min(candidates, 3)), np.random.default_rng(seed)
        own = [entry for entry in self.inputs if entry.name not in (positions, state)]
        cuts = np.sort(rng.choice(np.arange(1, count), users - 1, replace=False))
        lengths = np.diff([0, *cuts, count])
        width = next(entry.width for entry in self.inputs if entry.name == state)
        return {
            **make_random_tensors(own, candidates, count, seed),
            state: rng.standard_normal((users, width)).astype(np.float32),
            positions: list_positions(lengths),
        }


def list_state_inputs(model: StatefulRanker) -> list[Input]:
    """List the inputs of the states of the score program."""
    return [
        Input(f"{START}{history}", "FP32", "user", "value", 0, get_width(model, history)) for history in _names(model)
    ]


def build_update_programs(model: StatefulRanker) -> dict[str, ProgramModule]:
    """Return the programs that update the states of each history, by name, ready to be traced."""
    programs: dict[str, ProgramModule] = {}
    for history in _names(model):
        # With one event per user, states and events have one length.
        group = f"s.{history}" if model.updates_chunks else f"h.{history}"
        inputs = list_history_inputs(model.fields, history)
        inputs.append(Input(f"{START}{history}", "FP32", group, "value", 0, get_width(model, history)))
        if model.updates_chunks:
            inputs.append(Input(f"{POSITIONS}{history}", "INT64", group, "positions", 0))
        programs[f"{UPDATE}{history}"] = UpdateProgram(model, history, inputs).eval()
    return programs


def describe_states(model: StatefulRanker, fitted: FittedSchema) -> dict[str, StateFacts]:
    """Return the description of the states of each history."""
    facts = {}
    for history in _names(model):
        with torch.no_grad():
            start_W = model.start_state(history)
        start: list[float] = start_W.tolist() if start_W.any() else []
        delay, newest = compute_longest_delay(fitted, history), model.holds_newest(history)
        facts[history] = StateFacts(start, delay, start_W.shape[0], newest)
    return facts


def compute_longest_delay(fitted: FittedSchema, history: str) -> int:
    """Compute the time after an event until all its columns in a history, and its place in it, are final."""
    columns = fitted.schema.histories[history].features
    read = [name for name in list_event_columns(fitted) if name in columns]
    delays = [fitted.schema.available_after(name) for name in read if fitted.schema.features[name].feedback]
    return max([0, compute_filter_delay(fitted, history), *delays])


def check_states(model: Model, fitted: FittedSchema, items: EntityTable) -> StatefulRanker:
    """Check that a model has states, and that only final values enter them.

    Raises:
        BundleError: with every fault.
    """
    if not isinstance(model, StatefulRanker):
        problem = f"{type(model).__name__}, which has no state of a user that an event updates"
        raise BundleError("--states", problem, "one of hpmn, hstu, mimn, sdim", "export it without states")
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
            if column in COMPUTED and column not in model.list_folded_times(history):
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


def get_width(model: StatefulRanker, history: str) -> int:
    """Return W, the width of a packed state."""
    return model.start_state(history).shape[0]


def list_updates(programs: Mapping[str, ProgramFacts]) -> dict[str, str]:
    """Return the name of the program that updates the states of each history."""
    return {name.removeprefix(UPDATE): name for name in programs if name.startswith(UPDATE)}


def _names(model: StatefulRanker) -> list[str]:
    return list(model.fields.histories)
