"""Small random catalogs, and batches of requests with their next items and negatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from longrec.features.batch import Batch, Column, Layout, Targets
from longrec.features.fields import Fields
from longrec.features.sampling import Sampling
from longrec.testing.batches import FIELDS, GAP, ITEM, pick, ragged, values

NEGATIVES = 20
"""Number of negatives that the targets of a batch share."""


def catalog(fields: Fields = FIELDS, seed: int = 0) -> dict[str, Column]:
    """Return the features of all items, one entry per row of the table of ids, the reserved ones included."""
    generator = torch.Generator().manual_seed(seed)
    columns: dict[str, Column] = {f.name: values(f, ITEM.rows, generator) for f in fields.features if f.side == "item"}
    if ITEM.name in columns:
        columns[ITEM.name] = torch.arange(ITEM.rows, dtype=torch.int32)
    return columns


def requests_of(batch: Batch) -> Batch:
    """Return the requests of a batch without its candidates."""
    return Batch(Layout.catalog(batch.layout.requests, 0), batch.requests, {}, batch.histories)


def with_targets(
    sampling: Sampling, rows: int = 9, seed: int = 0, fields: Fields = FIELDS, *, per_position: bool = True
) -> Batch:
    """Return a random batch with targets.

    Args:
        sampling: negatives that the loss reads.
        per_position: every position of the first history has a target, else every request.
    """
    generator = torch.Generator().manual_seed(seed)
    base, every = ragged(rows, seed, fields=fields), catalog(fields, seed)
    history = next(iter(fields.histories))
    count = int(base.histories[history].offsets[-1]) if per_position else rows
    target_T, own_Tk = _draw(count, generator), None
    if sampling.scope == "all":
        candidates, item_T, negatives = torch.arange(2, ITEM.rows), target_T - 2, 0
    elif sampling.scope == "none":
        candidates, item_T = torch.unique(target_T, return_inverse=True)
        negatives = 0
    else:
        distinct, item_T = torch.unique(target_T, return_inverse=True)
        drawn = _draw(count * sampling.negatives if sampling.scope == "own" else NEGATIVES, generator)
        if sampling.scope == "own":
            drawn, own_Tk = torch.unique(drawn, return_inverse=True)
            own_Tk = own_Tk.view(count, -1) + len(distinct)
        candidates, negatives = torch.cat([distinct, drawn]), len(drawn)
        if sampling.in_batch:
            negatives = len(candidates)
    log_q = torch.randn(negatives, generator=generator) - 3 if sampling.scope == "shared" else None
    columns = {name: pick(column, candidates) for name, column in every.items()}
    requests = {name: column for name, column in base.features.items() if name not in columns}
    owner_T = torch.arange(rows).repeat_interleave(base.histories[history].offsets.diff())
    targets = Targets(
        torch.arange(count),
        item_T,
        candidates,
        negatives,
        ITEM.rows - 2,
        log_q=log_q,
        own=own_Tk,
        per_position=per_position,
        draws=torch.rand(negatives, generator=generator) + 0.5 if sampling.in_batch else None,
        hits=torch.stack([torch.arange(count), item_T.roll(1)]) if sampling.in_batch and sampling.mask_own else None,
        requests={name: pick(column, owner_T) for name, column in requests.items()} if per_position else None,
        age=torch.rand(count, generator=generator) if sampling.age else None,
        gap=values(GAP, count, generator) if sampling.time and per_position else None,  # type: ignore[arg-type]
    )
    return Batch(Layout.catalog(rows, len(candidates)), requests, columns, base.histories, targets=targets)


def with_weights(batch: Batch, weight_T: Tensor) -> Batch:
    """Return the batch with weights of its targets."""
    assert batch.targets is not None
    return replace(batch, targets=replace(batch.targets, weight=weight_T))


def _draw(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, ITEM.rows, (count,), generator=generator)
