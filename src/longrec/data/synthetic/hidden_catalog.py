"""The dataset ``hidden_catalog``: half of the items are new after training, and their group says what they are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from longrec.config import Strict
from longrec.data.synthetic.dataset import Recipe, SyntheticDataset
from longrec.data.synthetic.generators import CategorizedItems, choose_categories
from longrec.data.synthetic.two_interests import build_rounds

STORY = (
    "Every user takes items of one group. Half of the items of each group are in the catalog from the start, and no "
    "event of training has one: they are taken from the validation on, as often as the others. The group of an item "
    "is in the item table. A retriever that reads it ranks the new items of the group of a user beside the old ones. "
    "One that reads ids alone knows nothing about the new items. Each item also has a vector: a codeword of its group, "
    "a smaller one of a hidden second code, and noise. A tokenizer of vectors must find both codes, up to their names."
)


_SECOND = 0.3
"""Length of the codewords of the second code."""


class HiddenCatalog(Strict):
    """Parameters of ``hidden_catalog``."""

    users: int = Field(600, ge=1, description="number of users")
    groups: int = Field(16, ge=2, description="number of groups")
    each: int = Field(5, ge=1, description="old items of each group, and new items of each group")
    events: int = Field(8, ge=4, description="events of each user; the last one is tested, the one before validated")
    width: int = Field(16, ge=2, description="width of the vectors of items")
    noise: float = Field(0.01, ge=0, description="standard deviation of the noise in a vector")
    attributes: bool = Field(True, description="read the group in the schema besides the id")


def make(parameters: HiddenCatalog, random: np.random.Generator) -> SyntheticDataset:
    """Generate the dataset for some parameters."""
    users, groups, events, each = parameters.users, parameters.groups, parameters.events, parameters.each
    old = CategorizedItems(groups * each, groups, random)
    new = CategorizedItems(groups * each, groups, random)
    group = np.repeat(choose_categories(groups, users, 1, random), events, axis=1)
    late = np.arange(events) >= events - 2
    is_new = late & (random.random(group.shape) < 0.5)
    item = np.where(is_new, groups * each + new.draw_items(group, random), old.draw_items(group, random))
    log = build_rounds(item, random)
    columns = ["item", "group"] if parameters.attributes else ["item"]
    group_of = np.concatenate([old.category_of, new.category_of])
    code = random.integers(0, groups, len(group_of))
    features = {"item": {"kind": "id"}, "group": {"kind": "id", "side": "item"}}
    reader = {"name": "sasrec", "embedding_dim": 16}
    return SyntheticDataset(
        name="hidden_catalog",
        story=STORY,
        log=log,
        items=pa.table(
            {
                "item": np.arange(2 * groups * each),
                "group": group_of,
                "code": code,
                "vector": draw_vectors(group_of, code, parameters, random),
            }
        ),
        schema={
            "user": "user",
            "item": "item",
            "time": {"column": "time", "unit": "s"},
            "features": {name: features[name] for name in columns},
            "histories": {"taken": {"features": columns, "max_length": events}},
        },
        split={"by": "time", "valid": 1 / events, "test": 1 / events},
        true_probability=np.ones(users * events),
        must=(reader,) if parameters.attributes else (),
        must_not=({"name": "covisit"},) if parameters.attributes else (reader, {"name": "covisit"}),
        fit={"epochs": 8, "batch_size": 256, "lr": 3e-2, "embedding_lr": 3e-2, "patience": 0},
        evaluate={"seen": "keep", "catalog": "all"},
        hit_rates={k: min(k / (2 * each), 1.0) for k in (each, 2 * each)},
        truth=pa.table({"group": group.ravel(), "new": is_new.ravel().astype(np.int64)}),
    )


def draw_vectors(
    group: NDArray[np.int64], code: NDArray[np.int64], parameters: HiddenCatalog, random: np.random.Generator
) -> pa.Array:
    """Return a vector for each item, as lists of float32: codewords of length 1 and of length 0.3, and noise."""
    books = random.normal(size=(2, parameters.groups, parameters.width))
    books /= np.linalg.norm(books, axis=2, keepdims=True)
    vectors = books[0, group] + _SECOND * books[1, code]
    vectors += parameters.noise * random.normal(size=vectors.shape)
    return pa.array(list(vectors.astype(np.float32)))


RECIPE = Recipe(STORY, HiddenCatalog, make)
