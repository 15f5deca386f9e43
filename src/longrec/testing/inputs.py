"""Checks of what every model reads: every field, every event, the order if declared, vectors of other models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longrec.testing.batches import pick, ragged, repeated, shared, values, with_feature, with_history
from longrec.testing.case import Case, backpropagate, scores
from longrec.testing.expect import expect, expect_close


def check_every_input_is_read(case: Case) -> None:
    """Other values of any feature, or of any column of a history, change a score.

    A model with ``reads_history = False`` reads no history at all.
    """
    model, batch = case.lively(), ragged(40, fields=case.fields)
    before = scores(model, batch)
    generator = torch.Generator().manual_seed(99)
    for column in case.fields.features:
        after = scores(model, with_feature(batch, column.name, values(column, 40, generator)))
        expect((after - before).abs().max() > 1e-4, f"feature {column.name} is not read: no other value moves a score")
    for history, columns in case.fields.histories.items():
        for column in columns:
            events = int(batch.histories[history].offsets[-1])
            after = scores(model, with_history(batch, history, {column.name: values(column, events, generator)}))
            if model.reads_history:
                expect((after - before).abs().max() > 1e-4, f"column {column.name} of history {history} is not read")
            else:
                expect(torch.equal(after, before), f"history {history} is read by a model with reads_history = False")


def check_every_event_counts_for_its_row_only(case: Case) -> None:
    """The first and the last event of a row change its score, and that of no other row."""
    model, batch = case.lively(), ragged(16, fields=case.fields)
    if not model.reads_history:
        return
    before = scores(model, batch)
    for history, columns in case.fields.histories.items():
        offsets = batch.histories[history].offsets
        for end in ("first", "last"):
            moved = []
            for row in (offsets.diff() > 0).nonzero().squeeze(1).tolist():
                at = int(offsets[row]) if end == "first" else int(offsets[row + 1]) - 1
                order = list(range(int(offsets[-1])))
                order[at] = (at + len(order) // 2) % len(order)  # this event becomes another one
                changed = {c.name: pick(batch.histories[history].columns[c.name], order) for c in columns}
                change = scores(model, with_history(batch, history, changed)) - before
                moved.append(bool((change[row].abs() > 1e-6).any()))
                change[row] = 0
                others = f"the {end} event of row {row} in history {history} changes the score of another row"
                expect(change.abs().max() < 2e-5, others)
            expect(sum(moved) > len(moved) / 2, f"the {end} event of history {history} does not count for its row")


def check_order_matters_as_declared(case: Case) -> None:
    """A reversed history changes the scores of a model with ``order_matters = True``, and no others."""
    model, batch = case.lively(), ragged(20, fields=case.fields)
    if not model.reads_history:
        expect(not model.order_matters, "order_matters = True, but reads_history = False")
        return
    before, turned = scores(model, batch), batch
    for history, events in batch.histories.items():
        order: list[int] = []
        for row in range(20):
            order += reversed(range(int(events.offsets[row]), int(events.offsets[row + 1])))
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
    before, generator = scores(model, batch), torch.Generator().manual_seed(99)
    expect(before.isfinite().all(), "the output with a history of tokens is NaN or infinite")
    for column in fields.features:
        if column.kind == "embedding":
            after = scores(model, with_feature(batch, column.name, values(column, 40, generator)))
            expect((after - before).abs().max() > 1e-4, f"the vector {column.name} is not read")
    tokens: dict[str, Tensor] = {}
    for history, columns in fields.histories.items():
        if not any(column.kind == "embedding" for column in columns):
            continue
        for column in columns:
            events, own = int(batch.histories[history].offsets[-1]), batch.histories[history].columns[column.name]
            after = scores(model, with_history(batch, history, {column.name: values(column, events, generator)}))
            read = bool((after - before).abs().max() > 1e-4)
            expect(read == model.reads_history, f"{column.name}: read {read}, but reads_history {model.reads_history}")
            if column.kind == "embedding" and isinstance(own, Tensor):
                tokens[column.name] = own
    for candidates, events in ((5, 4), (2, 0)):
        one = shared(candidates, events, fields=fields)
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
