"""Settings and inputs that the rankers and retrievers of HSTU layers have in common."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import HistoryBatch
from longrec.features.fields import TIME_GAP, TIME_SINCE_PREVIOUS, Fields
from longrec.models.core.top import Width
from longrec.nn.event_times import EventTimes, decode_gaps, read_times
from longrec.nn.hstu import HSTUStack, StackForm
from longrec.nn.segments import Segments

_TIMES = (TIME_GAP, TIME_SINCE_PREVIOUS)


class StackConfig(Strict):
    """Settings of a stack of HSTU layers."""

    layers: Width = Field(2, description="HSTU layers.")
    heads: Width = Field(1, description="Heads of the attention.")
    head_width: Width | None = Field(
        None, description="Width of a head's queries, keys, values and gates; by default a share of the width."
    )
    max_events: Width = Field(200, description="n, by which sums over events are divided, and the longest window.")
    window: Width | None = Field(
        None, description="Number of newest events that an event sees, itself included; by default `max_events`."
    )
    time_bias: bool | None = Field(
        None,
        description="Bias of the time between events, from the columns `time_gap` and `time_since_previous`; by "
        "default where a history has both.",
    )
    layer_dropout: float = Field(0.2, ge=0, lt=1, description="Dropout rate of the inputs and of the layers.")


def build_stack(config: StackConfig, width: int, timed: bool) -> HSTUStack:
    """Return the layers of one history.

    Raises:
        ConfigError: if the window is longer than ``max_events``, or the heads do not divide the width.
    """
    window = config.window or config.max_events
    if window > config.max_events:
        fault = f"window: {window} is above max_events, {config.max_events}"
        raise ConfigError("config", [f"model.{fault}; raise max_events, by which sums are divided"])
    if config.head_width is None and width % config.heads:
        fault = f"heads: {width} is no multiple of {config.heads}"
        raise ConfigError("config", [f"model.{fault}; choose a divisor, or set head_width"])
    head_width = config.head_width or width // config.heads
    form = StackForm(
        width, config.layers, config.heads, head_width, config.max_events, window, timed, config.layer_dropout
    )
    return HSTUStack(form)


def is_timed(config: StackConfig, fields: Fields, history: str) -> bool:
    """Return True if the layers of a history have a bias of time.

    Raises:
        ConfigError: if the settings ask for one and the history lacks a column.
    """
    missing = [name for name in _TIMES if all(field.name != name for field in fields.histories[history])]
    if config.time_bias and missing:
        fault = f"time_bias: the history {history} lacks the column {' and '.join(missing)}"
        raise ConfigError("config", [f"model.{fault}; add it to histories.{history}.features, or leave time_bias out"])
    return config.time_bias is not False and not missing


def drop_times(fields: Fields, history: str) -> Fields:
    """Return fields without the columns of time of a history, which a bias of time reads instead."""
    columns = tuple(field for field in fields.histories[history] if field.name not in _TIMES)
    return replace(fields, histories={**fields.histories, history: columns})


def read_event_times(events: HistoryBatch, segments: Segments) -> EventTimes:
    """Return the times of the events of requests."""
    since_U, gap_U = events.columns[TIME_SINCE_PREVIOUS], events.columns[TIME_GAP]
    assert isinstance(since_U, Tensor)
    assert isinstance(gap_U, Tensor)
    return read_times(since_U, gap_U, segments)


def list_time_columns() -> tuple[str, ...]:
    """Return the columns of a history that a bias of time reads."""
    return _TIMES


def read_later_times(events: HistoryBatch, at_BP: Tensor, counts_B1: Tensor) -> tuple[EventTimes, Tensor]:
    """Return the times ``[B, P - 1]`` of events that follow states, and those ``[B, 1]`` of the event after them.

    Times count from the first event of a row, whose ``time_since_previous`` is not read.

    Args:
        at_BP: int64 positions of the events of each user, with the event after them.
        counts_B1: int64, number of events of each user without the one after them.
    """
    since_N = events.columns[TIME_SINCE_PREVIOUS]
    assert isinstance(since_N, Tensor)
    since_BP = decode_gaps(since_N).index_select(0, at_BP.flatten()).view(at_BP.shape)
    time_BP = (since_BP * (torch.arange(at_BP.shape[1], device=at_BP.device) > 0)).cumsum(1)
    return EventTimes(time_BP[:, :-1], time_BP[:, 1:]), time_BP.gather(1, counts_B1)
