r"""The dataset ``rich_instances``: the label depends on the fields of an earlier impression.

Every impression has ``fields`` wide fields. A few of them determine three latent variables: the signs x and z in
{-1, +1}, each value with probability 1/2, and a key. The other fields are noise. The probability of the label is

    P(y_i = 1) = sigmoid(own * x_i z_i + strength * c_i * h_i)

with c_i in {-1, +1} the category of the item, a feature of both schemas, and h_i in {-1, 0, +1} the sign of the sum of
x_j over impressions of the timestamp ``back`` timestamps earlier. With ``signal: last`` the sum is over all of them
(one impression, sometimes two). With ``signal: together`` a timestamp is a page of ``page`` impressions, and the sum is
over those whose key equals ``wanted`` of impression i, so a model must combine several impressions. h_i is 0 if there
are none, or if the sum is 0.

The wide schema contains the fields of an impression. The narrow one, ``schema``, does not, but it contains the ids,
labels and times of the user's history. These predict nothing: z is +1 or -1 with probability 1/2, independent of x, so
y_j is independent of x_j. Each timestamp affects the labels of only one later timestamp. So x_j cannot be inferred
from other labels, neither in a history nor through embeddings of users in training. A narrow model can only receive x_j
(and the key) from another model with access to the fields of impression j, as tokens. A model whose tokens are trained
on its own label alone needs to keep only x_j z_j, never x_j.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from longrec.config import Strict
from longrec.data.synthetic.dataset import START, Recipe, SyntheticDataset

STORY = (
    "The label depends on the features of its own impression and on the many fields of an earlier impression, and "
    "on nothing else. The narrow schema leaves these fields out, so earlier items, labels and times are noise. "
    "With the wide schema, a source model can store the fields of an impression in its token, which a reader of "
    "later impressions uses."
)
_ITEMS = 200
_STEP = 17  # between the items of one timestamp; coprime to the number of items, so that they differ
# Seconds between two timestamps. The last timestamp and the one before it are in different buckets of time_gap.
_GAP = (34_000, 57_000)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class RichInstances(Strict):
    """Parameters of ``rich_instances``."""

    users: int = Field(
        400, ge=1, description="number of users; 4000 are enough to learn the fields in one or two epochs"
    )
    impressions: int = Field(48, ge=1, description="impressions per user")
    fields: int = Field(60, ge=3, description="number of wide fields, including the informative ones")
    values: int = Field(4, ge=2, le=32_000, description="number of ids of a wide field, even; more are harder to learn")
    coin_fields: int = Field(
        1, ge=1, description="number of fields that determine each of the signs x and z, odd; more are harder to learn"
    )
    own: float = Field(2.0, ge=0, description="weight of the impression's own fields (x z) in the logit of its label")
    strength: float = Field(2.5, ge=0, description="weight of the history in the logit of the label")
    signal: Literal["last", "together"] = Field(
        "last", description="informative part of the history: one impression, or those of a page with the wanted key"
    )
    back: int = Field(1, ge=1, description="number of timestamps between an impression and the informative ones")
    ties: float = Field(0.05, ge=0, lt=1, description="last: share of impressions with the timestamp of the one before")
    page: int = Field(8, ge=2, le=_ITEMS, description="together: impressions per timestamp")
    keys: int = Field(2, ge=2, description="number of keys; every impression wants one of them")
    noise: float = Field(0.0, ge=0, le=1, description="share of labels that are random")

    @field_validator("values")
    @classmethod
    def _even(cls, values: int) -> int:
        if values % 2:
            raise ValueError(f"must be even, got {values}")
        return values

    @field_validator("coin_fields")
    @classmethod
    def _odd(cls, coin_fields: int) -> int:
        if coin_fields % 2 == 0:
            raise ValueError(f"must be odd, got {coin_fields}")
        return coin_fields

    @model_validator(mode="after")
    def _fits(self) -> RichInstances:
        if self.fields < 2 * self.coin_fields + 1:
            raise ValueError(
                f"fields: {2 * self.coin_fields + 1} are hidden ({self.coin_fields} twice, and the key), "
                f"got {self.fields}"
            )
        if self.keys > self.values:
            raise ValueError(f"keys: one field of {self.values} values gives the key, got {self.keys} keys")
        shown = self.page if self.signal == "together" else 1
        if self.impressions <= self.back * shown:
            raise ValueError(f"impressions: {self.impressions} per user leave none with a history")
        return self


@dataclass(frozen=True)
class _Timeline:
    """Timeline of the impressions. All arrays are ``[users * impressions]`` except ``first``.

    Attributes:
        times: timestamp of each row in seconds.
        request_index: index of the timestamp of each row, unique over all users.
        user_request_index: index of the timestamp of each row among those of its user.
        position: position of each row among the rows of its timestamp.
        first: first row of each timestamp.
    """

    times: Ints
    request_index: Ints
    user_request_index: Ints
    position: Ints
    first: Ints


def _draw_timeline(parameters: RichInstances, random: np.random.Generator) -> _Timeline:
    users, each = parameters.users, parameters.impressions
    new = np.ones((users, each), bool)
    pace = 1
    if parameters.signal == "together":
        new[:] = np.arange(each) % parameters.page == 0
        pace = 1 << (parameters.page.bit_length() - 1)  # a power of two keeps timestamps apart in time_gap
    else:
        new[:, 1:] = random.random((users, each - 1)) >= parameters.ties
    gaps = np.where(new, random.integers(*_GAP, (users, each)) * pace, 0)
    # Users start within the first quarter of the period, so that history lengths differ at any time.
    gaps[:, 0] = random.integers(0, max(int(gaps.sum(1).mean()) // 4, 1), users)
    user_request_index = np.cumsum(new, 1) - 1
    began = np.maximum.accumulate(np.where(new, np.arange(each), 0), 1)
    return _Timeline(
        times=START + np.cumsum(gaps, 1).ravel(),
        request_index=np.cumsum(new.ravel()) - 1,
        user_request_index=user_request_index.ravel(),
        position=(np.arange(each) - began).ravel(),
        first=np.flatnonzero(new.ravel()),
    )


def _sum_history(x: Ints, counted: NDArray[np.bool_], timeline: _Timeline, back: int) -> Ints:
    """Return the sign of the sum of x over the counted rows ``back`` timestamps earlier, 0 without such rows."""
    signs = np.sign(np.add.reduceat(np.where(counted, x, 0), timeline.first))
    return np.where(timeline.user_request_index >= back, signs[np.maximum(timeline.request_index - back, 0)], 0)


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


def make(parameters: RichInstances, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    rows = parameters.users * parameters.impressions
    timeline = _draw_timeline(parameters, random)
    wide = random.integers(0, parameters.values, (parameters.fields, rows), dtype=np.int16)
    hidden = random.permutation(parameters.fields)[: 2 * parameters.coin_fields + 1]

    def compute_sign(fields: Ints) -> Ints:
        """Return the majority vote of some fields. Half of the values of a field vote +1, the others -1."""
        votes = np.resize([1, -1], parameters.values)
        return np.sign(sum(random.permutation(votes)[wide[n]] for n in fields))

    x = compute_sign(hidden[: parameters.coin_fields])
    z = compute_sign(hidden[parameters.coin_fields : -1])
    key = random.permutation(np.arange(parameters.values) % parameters.keys)[wide[hidden[-1]]]
    category_of = random.permutation(np.arange(_ITEMS) % 2)
    item = (
        random.integers(0, _ITEMS, len(timeline.first))[timeline.request_index] + _STEP * timeline.position
    ) % _ITEMS
    wanted = random.integers(0, parameters.keys, rows)
    if parameters.signal == "together":
        history_sign = np.zeros(rows, np.int64)
        for one in range(parameters.keys):
            history_sign = np.where(wanted == one, _sum_history(x, key == one, timeline, parameters.back), history_sign)
    else:
        history_sign = _sum_history(x, np.ones(rows, bool), timeline, parameters.back)
    chances = _chances(parameters, x * z, (2 * category_of[item] - 1) * history_sign)
    label = (random.random(rows) < chances["p_wide"]).astype(np.int64)
    log = {
        "user": np.repeat(np.arange(parameters.users), parameters.impressions),
        "item": item,
        "time": timeline.times,
        "wanted": wanted,
        "liked": label,
        **{name: column for name, column in zip(_field_names(parameters.fields), wide)},
    }
    return SyntheticDataset(
        name="rich_instances",
        story=STORY,
        log=pa.table(log),
        items=pa.table({"item": np.arange(_ITEMS), "category": category_of}),
        schema=_schema(parameters, ()),
        wide=_schema(parameters, _field_names(parameters.fields)),
        split={"by": "time", "valid": 0.1, "test": 0.2},
        true_probability=chances["p_narrow"],
        truth=pa.table({"x": x, "z": z, "key": key, "past": history_sign, **chances}),
        must_not=tuple({"name": name} for name in ("lr", "fm", "deepfm", "wide_deep", "dcn", "pooling", "din")),
        fit={"epochs": 2},
    )


def _chances(parameters: RichInstances, own: Ints, history: Ints) -> dict[str, Floats]:
    """Return the probability that a label is 1, float64 ``[rows]``, given three sets of information.

    Args:
        own: x z of each row.
        history: c h of each row.

    Returns:
        ``p_narrow``: given the history, but not the fields of the event. ``p_own``: given these fields, but not the
        history. ``p_wide``: given both, which is the probability that generates the label.
    """

    def chance(own: Any, history: Any) -> Floats:
        return (1 - parameters.noise) * _sigmoid(
            parameters.own * own + parameters.strength * history
        ) + parameters.noise / 2

    none = float((history == 0).mean())
    return {
        "p_narrow": (chance(1, history) + chance(-1, history)) / 2,
        "p_own": none * chance(own, 0) + (1 - none) * (chance(own, 1) + chance(own, -1)) / 2,
        "p_wide": chance(own, history),
    }


def _field_names(count: int) -> list[str]:
    digits = len(str(count - 1))
    return [f"f{n:0{digits}d}" for n in range(count)]


def _schema(parameters: RichInstances, fields: Any) -> dict[str, Any]:
    """Return a schema with the wide ``fields`` of an event."""
    # The history contains exactly the events up to and including the informative page.
    last = parameters.page * parameters.back if parameters.signal == "together" else max(20, 2 * parameters.back)
    return {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "label": "liked",
        "features": {
            "user": {"kind": "id"},
            "item": {"kind": "id"},
            "category": {"kind": "id", "side": "item"},
            "wanted": {"kind": "id"},
            "outcome": {"kind": "id", "column": "liked", "feedback": True},
            **{name: {"kind": "id"} for name in fields},
        },
        "histories": {"past": {"features": ["item", "category", "outcome", "time_gap"], "max_length": last}},
    }


RECIPE = Recipe(STORY, RichInstances, make)
