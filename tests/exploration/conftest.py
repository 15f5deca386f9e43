from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from longrec.models.core.kinds import Ranker
from longrec.testing.batches import FEW
from longrec.testing.case import Case

SMALL: dict[str, dict[str, Any]] = {
    "pooling": {"mlp": [12, 8], "embedding_dim": 4, "activation": "tanh", "batch_norm": False},
    "din": {"mlp": [8], "attention": [6], "embedding_dim": 4},
    "dcn_v2": {"mlp": [8, 6], "cross_layers": 1, "embedding_dim": 4},
    "deepfm": {"mlp": [8], "embedding_dim": 4},
    "bst": {"mlp": [8], "heads": 2, "embedding_dim": 4},
    "mmoe": {"expert": [6], "tower": [4], "experts": 2, "embedding_dim": 4, "tasks": {"bought": 1.0}},
    "dien": {"mlp": [8], "hidden": 4, "aux": [4], "embedding_dim": 4},
    "dupn": {"mlp": [8], "hidden": 4, "attention": [4], "embedding_dim": 4},
    "lr": {},
}


@pytest.fixture(scope="session")
def ranker() -> Callable[[str], Ranker]:
    """Return small rankers by name, with weights that differ from their initial values."""
    models: dict[str, Ranker] = {}

    def build(name: str) -> Ranker:
        if name not in models:
            model = Case(name, SMALL[name]).lively(FEW)
            assert isinstance(model, Ranker)
            models[name] = model
        return models[name]

    return build
