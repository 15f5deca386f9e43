"""Checks of what every model reads: every field, every event, the order if declared, vectors of other models.

Most compare a batch with changed copies of it. All copies are rows of one large batch, which takes far less time than
a batch for each. That rows do not see each other is checked in ``core.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longrec.features.batch import Batch
from longrec.models.core.kinds import Encoder, Ranker
from longrec.testing.batches import join, pick, ragged, repeated, shared, values, with_feature, with_history
from longrec.testing.case import Case, backpropagate, scores
from longrec.testing.expect import expect, expect_close

MOVED = 2e-5
"""Smallest change of an output that is not the rounding of a larger batch."""


def measure_changes(model: Ranker | Encoder, batch: Batch, changed: Sequence[Batch]) -> Tensor:
    """Return by how much each changed batch moves the output of each row: ``[changes, rows]``.

    Raises:
        ConformanceError: if the batch itself scores otherwise among its changed copies.
    """
    together = scores(model, join([batch, *changed])).reshape(len(changed) + 1, batch.size, -1)
    alone = scores(model, batch).reshape(batch.size, -1)
    expect_close(together[0], alone, f"{batch.size} rows score otherwise in a batch of {len(changed)} times as many")
    return (together[1:] - together[0]).abs().amax(2)


def check_every_input_is_read(case: Case) -> None:
    """Other values of any feature, or of any column of a history, change a score.

    A model with ``reads_history = False`` reads no history at all.
    """
    model, batch = case.frozen(), ragged(40, fields=case.fields)
    generator = torch.Generator().manual_seed(99)
    changed = {
        f"feature {column.name}": with_feature(batch, column.name, values(column, 40, generator))
        for column in case.fields.features
    }
    other = batch
    for history, columns in case.fields.histories.items():
        for column in columns:
            drawn = values(column, int(batch.histories[history].offsets[-1]), generator)
            other = with_history(other, history, {column.name: drawn})
            if model.reads_history:
                one = with_history(batch, history, {column.name: drawn})
                changed[f"column {column.name} of history {history}"] = one
    moves = measure_changes(model, batch, list(changed.values())).amax(1).tolist()
    unread = [name for name, move in zip(changed, moves, strict=True) if not move > 1e-4]
    expect(not unread, f"not read, no other value moves a score: {', '.join(unread)}")
    if not model.reads_history:
        same = torch.equal(scores(model, other), scores(model, batch))
        expect(same, "a history is read by a model with reads_history = False")


def check_every_event_counts_for_its_row_only(case: Case) -> None:
    """The first and the last event of a row change its score, and that of no other row."""
    model, batch = case.frozen(), ragged(16, fields=case.fields)
    if not model.reads_history or not batch.histories:
        return
    changed: dict[tuple[str, str, int], Batch] = {}
    for history, events in batch.histories.items():
        bounds = events.offsets.tolist()
        for row in [row for row in range(batch.size) if bounds[row] < bounds[row + 1]]:
            for end, at in (("first", bounds[row]), ("last", bounds[row + 1] - 1)):
                order = list(range(bounds[-1]))
                order[at] = (at + len(order) // 2) % len(order)  # this event becomes another one
                one = {name: pick(column, order) for name, column in events.columns.items()}
                changed[history, end, row] = with_history(batch, history, one)
    moves = measure_changes(model, batch, list(changed.values()))
    counted: dict[tuple[str, str], list[bool]] = {}
    for (history, end, row), move_B in zip(changed, moves, strict=True):
        counted.setdefault((history, end), []).append(bool(move_B[row] > MOVED))
        move_B[row] = 0
        others = f"the {end} event of row {row} in history {history} changes the score of another row"
        expect(move_B.max() < MOVED, others)
    for (history, end), rows in counted.items():
        expect(sum(rows) > len(rows) / 2, f"the {end} event of history {history} does not count for its row")


def check_order_matters_as_declared(case: Case) -> None:
    """A reversed history changes the scores of a model with ``order_matters = True``, and no others."""
    model, batch = case.frozen(), ragged(20, fields=case.fields)
    if not model.reads_history:
        expect(not model.order_matters, "order_matters = True, but reads_history = False")
        return
    before, turned = scores(model, batch), batch
    for history, events in batch.histories.items():
        bounds = events.offsets.tolist()
        order: list[int] = []
        for row in range(20):
            order += reversed(range(bounds[row], bounds[row + 1]))
        turned = with_history(turned, history, {name: pick(column, order) for name, column in events.columns.items()})
    after = scores(model, turned)
    if not model.order_matters:
        expect_close(after, before, "order_matters = False, but reversed histories score otherwise")
    elif batch.histories:
        expect((after - before).abs().max() > 1e-4, "order_matters = True, but reversed histories score the same")


def check_instance_tokens_and_knowledge_are_read(case: Case) -> None:
    """A history of tokens, and vectors of the user and the item, are columns like others to every model."""
    fields = case.tokens
    model, batch = case.lively(fields), ragged(40, fields=fields)
    expect(scores(model, batch).isfinite().all(), "the output with a history of tokens is NaN or infinite")
    generator = torch.Generator().manual_seed(99)
    changed = {
        column.name: with_feature(batch, column.name, values(column, 40, generator))
        for column in fields.features
        if column.kind == "embedding"
    }
    features, tokens = len(changed), {}
    for history, columns in fields.histories.items():
        if not any(column.kind == "embedding" for column in columns):
            continue
        for column in columns:
            events, own = int(batch.histories[history].offsets[-1]), batch.histories[history].columns[column.name]
            changed[column.name] = with_history(batch, history, {column.name: values(column, events, generator)})
            if column.kind == "embedding" and isinstance(own, Tensor):
                tokens[column.name] = own
    moves = measure_changes(model, batch, list(changed.values())).amax(1).tolist() if changed else []
    for number, (name, move) in enumerate(zip(changed, moves, strict=True)):
        read = number < features or model.reads_history
        expect(
            (move > 1e-4) == read, f"{name} is {'not ' if read else ''}read: other values move a score by {move:.2g}"
        )
    for candidates, number in ((5, 4), (2, 0)):
        one = shared(candidates, number, fields=fields)
        rows = scores(model, repeated(one, fields))
        expect_close(scores(model, one), rows, "one user with a history of tokens scores otherwise than its rows")
    kept = {name: vectors.clone() for name, vectors in tokens.items()}
    backpropagate(model.train(), batch)
    for name, parameter in model.named_parameters():
        expect(parameter.grad is not None or not parameter.requires_grad, f"{name} gets no gradient")
    for name, vectors in tokens.items():
        expect(vectors.grad is None, f"{name} gets a gradient, though no model of this training made it")
        expect(torch.equal(vectors, kept[name]), f"the model writes into {name}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_every_input_is_read,
    check_every_event_counts_for_its_row_only,
    check_order_matters_as_declared,
    check_instance_tokens_and_knowledge_are_read,
)
"""Checks of what every model reads."""
