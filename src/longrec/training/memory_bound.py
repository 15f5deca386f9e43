"""Bound on the memory of a training, without building the model.

``longrec check`` builds the model without memory (``memory.py``), which imports torch, only if this bound exceeds what
is available. The bound adds up all sizes of a config, so that it is above the exact number. A test compares the two for
every model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from longrec.features.feature import Feature
from longrec.features.feature_encoders import FIRST, Encoder
from longrec.features.fields import Fields
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Schema
from longrec.models.core.settings_schema import find_facts
from longrec.resources import available_memory
from longrec.training.settings import FitConfig

_USUAL_WIDTH = 16
_LAYERS = 8
"""Number of matrices of the largest possible size. Models have at most a third of that."""
NUMBER_BYTES = 4
"""Bytes of a float32."""
STATE_NUMBERS = {"adamw": 2, "adam": 2, "lazy_adam": 2, "rowwise_adam": 1, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}
"""State numbers that each optimizer keeps per parameter number. State per row is not counted."""


def may_exceed_memory(model: Mapping[str, Any], schema: Schema, fit: FitConfig) -> bool:
    """Return True if a training may exceed the available memory, so that its exact number has to be computed.

    Args:
        model: the ``model`` section of a job, with all defaults.
    """
    free = available_memory()
    if free is None:
        return False
    bound = bound_numbers(model, schema)
    kept = max(STATE_NUMBERS[fit.optimizer], STATE_NUMBERS[fit.embedding_optimizer]) + (fit.momentum > 0)
    return bound is None or bound * NUMBER_BYTES * (1 + kept) > free


def bound_numbers(model: Mapping[str, Any], schema: Schema) -> int | None:
    """Return a number above the number of parameters of a model. None for models of other packages.

    A row of a table has the width of an embedding and one more number, in each of the nested models. A matrix has at
    most as many rows and columns as there are inputs and units in all layers together.
    """
    sections = list(_iterate_sections(model))
    if any(re.search("[.:]", str(section["name"])) for section in sections):
        return None
    sizes = _Sizes()
    for section in sections:
        sizes.add(section)
    fields = estimate_fields(schema)
    columns = [*fields.features, *(column for history in fields.histories.values() for column in history)]
    width = max([_USUAL_WIDTH, *sizes.dims, *(feature.dim or 0 for feature in schema.features.values())])
    inputs = sum(max(width, (schema.features[c.name].width or 0) if c.name in schema.features else 0) for c in columns)
    rows = sum(_estimate_rows(feature) for feature in schema.features.values())
    row_numbers = (width + 1 + sizes.row_widths) * len(sections) + sizes.row_numbers
    tables = rows * row_numbers + sizes.further_rows * (width + 1)
    tables += math.ceil(rows ** (4 / 3)) * sizes.hash_widths * len(sections)
    return tables + _LAYERS * (inputs + sizes.units) ** 2


@dataclass
class _Sizes:
    """Sizes in the sections of a model and of those nested in it.

    Attributes:
        units: sum of all whole numbers that are neither of the other two.
        further_rows: rows of tables whose size is a setting.
        row_numbers: numbers in a row of a table that a setting gives in another way than as a width.
        row_widths: further widths of a row, such as that of the output of each token.
        hash_widths: widths of a row of tables of pairs, of all of them. A pair of vocabularies of V and W tokens has
            (V W)^(2/3) rows at most, which is below the number of all rows to the power of 4/3.
        dims: widths of embeddings.
    """

    units: int = 0
    further_rows: int = 0
    row_numbers: int = 0
    row_widths: int = 0
    hash_widths: int = 0
    dims: tuple[int, ...] = ()

    def add(self, section: Mapping[str, Any]) -> None:
        """Add the sizes of one section."""
        fields = find_facts(str(section["name"])).config.model_fields
        settings = {key: value for key, value in section.items() if not _is_section(value)}
        names = sum(1 for value in _iterate_leaves(settings) if isinstance(value, str))
        for key, value in settings.items():
            numbers = [one for one in _iterate_leaves(value) if isinstance(one, int) and not isinstance(one, bool)]
            extra = fields[key].json_schema_extra if key in fields else None
            marks = extra if isinstance(extra, dict) else {}
            if marks.get("x-rows"):
                self.further_rows += sum(numbers) * names
            elif marks.get("x-row-numbers"):
                self.row_numbers += 2 * sum(numbers) ** 2 * names
            elif marks.get("x-row-width"):
                self.row_widths += sum(numbers) + 1
            elif marks.get("x-hash-width"):
                self.hash_widths += 2 * names * (sum(numbers) + 1)
            else:
                self.units += sum(numbers)
            if key.endswith("dim"):
                self.dims = (*self.dims, *numbers)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _iterate_sections(section: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the section of a model and those of the models inside it."""
    yield section
    for value in section.values():
        if _is_section(value):
            yield from _iterate_sections(value)


def _iterate_leaves(value: Any) -> Iterator[Any]:
    """Yield the plain values of nested settings."""
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _iterate_leaves(inner)
    else:
        yield value


def estimate_fields(schema: Schema) -> Fields:
    """Return the fields of a schema with the table sizes that it fixes: hashes, listed vocabularies and edges.

    A learned vocabulary counts as empty, and stores of other models are excluded.
    """
    rows = {name: cast(Encoder, _Rows(_estimate_rows(feature))) for name, feature in schema.features.items()}
    rows |= {name: rows[one.share] for name, one in schema.features.items() if one.share}
    fitted = FittedSchema(schema, rows)
    features = [n for n, one in schema.features.items() if not one.feedback and one.kind != "embedding"]
    own = {name: history.features for name, history in schema.histories.items() if history.source is None}
    histories = {name: tuple(fitted.field(column) for column in of) for name, of in own.items()}
    return Fields(tuple(map(fitted.field, features)), histories)


@dataclass(frozen=True)
class _Rows:
    """Replacement of an encoder that is not fitted yet."""

    rows: int


def _estimate_rows(feature: Feature) -> int:
    if feature.form == "numeric":
        return 0
    if feature.hash is not None:
        return FIRST + feature.hash
    if isinstance(feature.vocab, tuple):
        return FIRST + len(feature.vocab)
    if feature.edges is not None:
        return FIRST + len(feature.edges) + 1
    return FIRST + (feature.quantiles or 0)
