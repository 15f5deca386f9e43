"""Checks of the scores of every model: one per row, of its own row alone, the same however the rows are batched."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch

from longrec.models.core import artifact
from longrec.models.core.kinds import Encoder, Ranker
from longrec.testing.batches import grouped, ragged, repeated, shared, take
from longrec.testing.case import Case, backpropagate, logits, scores
from longrec.testing.expect import ConformanceError, expect, expect_close


def check_one_finite_score_a_row(case: Case) -> None:
    """A batch of B rows has B finite logits (and B vectors of an encoder), and different rows differ."""
    model = case.frozen()
    for rows in (1, 2, 9):
        batch = ragged(rows, fields=case.fields)
        actual = scores(model, batch)
        shape = (rows, model.width) if isinstance(model, Encoder) else (rows,)
        expect(actual.shape == shape, f"the output of {rows} rows has shape {tuple(actual.shape)}, expected {shape}")
        expect(actual.dtype == torch.float32, f"the output is {actual.dtype}, expected float32")
        expect(actual.isfinite().all(), f"the output of {rows} rows holds NaN or infinity")
        logit = logits(model, batch)
        expect(logit.shape == (rows,), f"forward returns {tuple(logit.shape)} for {rows} rows, expected {(rows,)}")
        expect(logit.isfinite().all(), f"a logit of {rows} rows is NaN or infinite")
    same = 9 - len({tuple(row) for row in scores(model, ragged(9, fields=case.fields)).reshape(9, -1).tolist()})
    expect(same == 0, f"{same} of 9 different rows have the output of another one")


def check_rows_do_not_see_each_other(case: Case) -> None:
    """The output of a row is the same alone, among other rows, and at any place of the batch."""
    model, batch = case.frozen(), ragged(9, fields=case.fields)
    together = scores(model, batch)
    for rows in ([8, 7, 6, 5, 4, 3, 2, 1, 0], [4, 1], [3, 3, 0], *([row] for row in range(9))):
        expect_close(scores(model, take(batch, rows)), together[rows], f"rows {rows} of 9 score otherwise alone")


def check_many_rows_score_as_few(case: Case) -> None:
    """Large batches use other operators than small ones (see nn/linear.py), and score the same."""
    model, batch = case.frozen(), ragged(1500, fields=case.fields)
    rows = list(range(0, 1500, 97))
    few = scores(model, take(batch, rows))
    expect_close(scores(model, batch)[rows], few, "a row among 1500 scores otherwise than among 16")


def check_an_empty_history_is_scored(case: Case) -> None:
    """Rows without any event have finite scores, a finite loss and finite gradients."""
    model = case.lively()
    batch = ragged(5, lengths=[0] * 5, fields=case.fields)
    actual = scores(model, batch)
    expect(actual.isfinite().all(), "the output of rows without events is NaN or infinite")
    alone = torch.cat([scores(model, take(batch, [row])) for row in range(5)])
    expect_close(actual, alone, "a row without events scores otherwise by itself")
    model.train()
    loss = backpropagate(model, batch)
    expect(loss.isfinite(), "the loss of rows without events is NaN or infinite")
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        finite = grad is None or (grad._values() if grad.is_sparse else grad).isfinite().all()
        expect(finite, f"rows without events: the gradient of {name} holds NaN or infinity")


def check_shared_batch_scores_as_ragged(case: Case) -> None:
    """One user with several candidates scores as the same user repeated in each row."""
    model = case.frozen()
    for candidates, events in ((6, 5), (1, 4), (4, 1), (3, 0)):
        batch = shared(candidates, events, fields=case.fields)
        actual = scores(model, batch)
        where = f"one user with {candidates} candidates and {events} events"
        expect(len(actual) == candidates, f"{where}: {len(actual)} outputs")
        rows = scores(model, repeated(batch, case.fields))
        expect_close(actual, rows, f"{where} scores otherwise than {candidates} rows of that user")


def check_grouped_batch_is_learned_as_single(case: Case) -> None:
    """Candidates that share the history of their request get the scores, loss and gradients of single rows.

    Only of a model with ``reads_groups = True``. Others get single rows.
    """
    if not case.frozen().reads_groups:
        return
    model, batch = case.lively(), grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=case.fields)
    expect_close(scores(model, batch), scores(model, batch.ungroup()), "grouped rows score otherwise than single ones")
    losses, gradients = [], []
    for one in (batch, batch.ungroup()):
        model.zero_grad()
        losses.append(float(backpropagate(model, one).detach()))
        gradients.append({n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None})
    expect(abs(losses[0] - losses[1]) < 1e-6, f"the loss of grouped rows is {losses[0]}, of single ones {losses[1]}")
    for name, gradient in gradients[0].items():
        expect_close(gradient, gradients[1][name], f"grouped rows give another gradient of {name}")


def check_same_seed_same_weights(case: Case) -> None:
    """The seed, and nothing else, decides the initial weights."""
    one, two, other = case.build(3), case.build(3), case.build(4)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        expect(torch.equal(a, b), f"{name} has two different starts with the same seed")
    if any(bool(parameter.any()) for parameter in one.parameters()):  # one that starts at zero has nothing to draw
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        expect(any(not torch.equal(a, b) for a, b in pairs), "another seed gives the same initial weights")


def check_saved_and_loaded(case: Case) -> None:
    """A model that was saved and loaded has its settings, its fields and, to the bit, its scores."""
    model, batch = case.frozen(), ragged(9, fields=case.fields)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        again = artifact.load(folder)
    if not isinstance(again, type(model)) or not isinstance(again, Ranker | Encoder):
        raise ConformanceError(f"a {type(model).__name__} is loaded as a {type(again).__name__}")
    expect(again.config == model.config, f"the settings change when saved: {model.config} -> {again.config}")
    expect(again.fields == model.fields, "the fields change when saved")
    expect(torch.equal(scores(again.eval(), batch), scores(model, batch)), "the scores change when saved and loaded")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_one_finite_score_a_row,
    check_rows_do_not_see_each_other,
    check_many_rows_score_as_few,
    check_an_empty_history_is_scored,
    check_shared_batch_scores_as_ragged,
    check_grouped_batch_is_learned_as_single,
    check_same_seed_same_weights,
    check_saved_and_loaded,
)
"""Checks of the scores of every model."""
