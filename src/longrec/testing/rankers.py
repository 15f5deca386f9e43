"""Checks of rankers: what a model explains."""

from __future__ import annotations

from collections.abc import Callable

import torch

from longrec.models.core.kinds import Ranker
from longrec.testing.batches import ragged, shared
from longrec.testing.case import Case
from longrec.testing.expect import expect


def check_what_is_explained_fits_the_histories(case: Case) -> None:
    """``explain`` returns one finite weight per event of a history (and per candidate of a shared batch)."""
    model, fields = case.frozen(case.few), case.few
    assert isinstance(model, Ranker)
    sizes = [(5, 7), (3, 0), (1, 0), (1, 1)]
    for batch in [ragged(9, fields=fields), *(shared(*size, fields=fields) for size in sizes)]:
        with torch.no_grad():
            explained = model.explain(batch)
        unknown = set(explained) - set(batch.histories)
        expect(not unknown, f"explain returns weights of {', '.join(sorted(unknown))}, which the batch does not have")
        for name, weights in explained.items():
            events = int(batch.histories[name].offsets[-1])
            shape = (batch.size, events) if batch.layout.kind == "shared" else (events,)
            actual = tuple(weights.shape)
            expect(actual == shape, f"explain returns weights of {name} of shape {actual}, expected {shape}")
            expect(weights.isfinite().all(), f"explain returns weights of {name} that are NaN or infinite")


CHECKS: tuple[Callable[[Case], None], ...] = (check_what_is_explained_fits_the_histories,)
"""Checks of rankers."""
