"""Checks of retrievers: their scores, what they read, how they are trained or fitted."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch
from longrec.models.core import artifact
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import FittedRetriever, Retriever, VectorRetriever
from longrec.testing.batches import ITEM, grouped, pick, ragged, repeated, shared, take, with_history
from longrec.testing.case import Case, backpropagate
from longrec.testing.devices import compare_gradients, step_far, stop_dropout
from longrec.testing.expect import ConformanceError, expect, expect_close
from longrec.testing.target_batches import catalog, requests_of, with_targets, with_weights
from longrec.training.sparse_optimizers import LazyAdam

Trained = VectorRetriever | Generator
"""Retrievers that are trained on targets."""


def lively(case: Case) -> Retriever:
    """Return a model in evaluation mode: with parameters unlike their initial values, or fitted on random histories.

    Raises:
        ConformanceError: if it is no retriever.
    """
    model = case.build()
    if not isinstance(model, Retriever):
        raise ConformanceError(f"{type(model).__name__} is no Retriever")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    if isinstance(model, FittedRetriever):
        model.fit_statistics(training_histories(case, seed) for seed in range(2))
    return model.eval()


def training_histories(case: Case, seed: int) -> dict[str, HistoryBatch]:
    """Return random histories of 200 users with the times of their events."""
    histories = ragged(200, seed, fields=case.fields).histories
    return {
        name: replace(history, seconds=np.linspace(0, 36_000, int(history.host_offsets[-1])))
        for name, history in histories.items()
    }


def lively_vectors(case: Case) -> VectorRetriever:
    """Return the model of ``lively``, which has vectors."""
    model = lively(case)
    assert isinstance(model, VectorRetriever)
    return model


def lively_trained(case: Case) -> Trained:
    """Return the model of ``lively``, which is trained on targets."""
    model = lively(case)
    assert isinstance(model, Trained)
    return model


def score(model: Retriever, batch: Batch, case: Case) -> Tensor:
    """Return the score of all items for every request, without a graph of gradients."""
    with torch.no_grad():
        return model.score_catalog(batch, catalog(case.fields))


def check_one_finite_score_an_item(case: Case) -> None:
    """R requests have ``[R, I]`` finite scores, also without any event, and those of requests differ as declared."""
    model = lively(case)
    for batch in (
        ragged(1, fields=case.fields),
        ragged(9, fields=case.fields),
        ragged(3, lengths=[0] * 3, fields=case.fields),
    ):
        actual = score(model, batch, case)
        shape = (batch.size, ITEM.rows)
        expect(actual.shape == shape, f"the scores have shape {tuple(actual.shape)}, expected {shape}")
        expect(actual.dtype == torch.float32, f"the scores are {actual.dtype}, expected float32")
        expect(actual.isfinite().all(), f"a score of {batch.size} requests is NaN or infinite")
    many = score(model, ragged(9, fields=case.fields), case)
    if model.personalized:
        expect(many.std(0).max() > 1e-4, "all requests have the same scores")
    else:
        expect(torch.equal(many, many[:1].expand_as(many)), "personalized = False, and requests have other scores")
    expect(many.std(1).max() > 1e-4, "all items have the same score")


def check_requests_do_not_see_each_other(case: Case) -> None:
    """The scores of a request are the same alone and among others, and those of an item too."""
    model, batch, items = lively(case), ragged(600, fields=case.fields), catalog(case.fields)
    together = score(model, batch, case)
    for rows in ([8, 7, 6, 5, 4, 3, 2, 1, 0], [3, 3, 0], *([row] for row in range(9)), list(range(0, 600, 97))):
        alone = score(model, take(batch, rows), case)
        expect_close(alone, together[rows], f"requests {rows} of 600 score otherwise alone")
    some = {name: pick(column, [7, 3, 3, 40]) for name, column in items.items()}
    with torch.no_grad():
        alone = model.score_catalog(batch, some)
    expect_close(alone, together[:, [7, 3, 3, 40]], "an item scores otherwise in another catalog")


def check_every_layout_scores_alike(case: Case) -> None:
    """A request has the same scores in serving, with several candidates, and without any."""
    model = lively(case)
    for events in (5, 1, 0):
        batch = shared(1, events, fields=case.fields)
        alone = score(model, repeated(batch, case.fields), case)
        expect_close(score(model, batch, case), alone, f"one user with {events} events scores otherwise as a row")
    several = grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=case.fields)
    if model.reads_groups:
        without = score(model, requests_of(several), case)
        expect_close(score(model, several, case), without, "a request with several candidates scores otherwise")


def check_order_of_events_matters_as_declared(case: Case) -> None:
    """A reversed history changes the scores of a retriever with ``order_matters = True``, and no others."""
    model, batch = lively(case), ragged(20, fields=case.fields)
    turned = batch
    for history, events in batch.histories.items():
        bounds = events.offsets.tolist()
        order = [at for row in range(20) for at in reversed(range(bounds[row], bounds[row + 1]))]
        turned = with_history(turned, history, {name: pick(column, order) for name, column in events.columns.items()})
    moved = float((score(model, turned, case) - score(model, batch, case)).abs().max())
    expect((moved > 1e-4) == model.order_matters, f"order_matters = {model.order_matters}, reversal moves {moved:.2g}")


def check_a_retriever_is_saved_and_loaded(case: Case) -> None:
    """A retriever that was saved and loaded has its settings and, to the bit, its scores."""
    model, batch = lively(case), ragged(9, fields=case.fields)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        again = artifact.load(folder)
    if not isinstance(again, type(model)):
        raise ConformanceError(f"a {type(model).__name__} is loaded as a {type(again).__name__}")
    expect(again.config == model.config, f"the settings change when saved: {model.config} -> {again.config}")
    expect(torch.equal(score(again.eval(), batch, case), score(model, batch, case)), "the scores change when saved")


def check_a_state_reads_no_later_event(case: Case) -> None:
    """A state reads the events up to its own, and that of the last event is what ``users`` returns."""
    model, batch = lively_vectors(case), ragged(20, fields=case.fields)
    if not model.reads_sequences:
        return
    name = next(iter(case.fields.histories))
    bounds = batch.histories[name].offsets
    filled = bounds.diff() > 0
    last = bounds[1:][filled] - 1
    order = torch.arange(int(bounds[-1]))
    order[last] = (last + len(order) // 2) % len(order)
    events = {column: pick(values, order) for column, values in batch.histories[name].columns.items()}
    with torch.no_grad():
        before, after = model.states(batch), model.states(with_history(batch, name, events))
        users = model.users(batch)[filled]
    expect_close(users, before[last].view_as(users), "users is not the state of the last event")
    moved = (before - after).abs().flatten(1).amax(1)
    earlier = torch.ones(len(order), dtype=torch.bool).index_fill(0, last, False)
    expect(moved[earlier].max() < 2e-5, f"a later event moves an earlier state by {float(moved[earlier].max()):.2g}")
    expect(moved[last].min() > 1e-4, "the last event does not change the state after it")


def _each_kind_of_targets(model: Trained, case: Case, rows: int) -> list[Batch]:
    kinds = [True, False] if model.reads_sequences else [False]
    return [with_targets(model.sampling, rows, fields=case.fields, per_position=kind) for kind in kinds]


def check_targets_reach_every_parameter(case: Case) -> None:
    """The loss of targets reaches every parameter that is served. Tables, and nothing else, have sparse gradients."""
    model = lively_trained(case).train()
    tables = {id(table) for table in model.embedding_parameters()}
    for batch in _each_kind_of_targets(model, case, 300):
        model.zero_grad()
        expect(backpropagate(model, batch).isfinite(), "the loss of targets is NaN or infinite")
        for name, parameter in model.served().named_parameters():
            if parameter.grad is None:
                raise ConformanceError(f"{name} gets no gradient")
            expect(parameter.grad.is_sparse == (id(parameter) in tables), f"{name}: tables alone take sparse gradients")
            dense = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
            expect(dense.isfinite().all(), f"the gradient of {name} holds NaN or infinity")
            expect(dense.abs().sum() > 0, f"{name} gets a gradient of zero")


def check_a_loss_is_the_weighted_mean_over_targets(case: Case) -> None:
    """The loss of any weights is that of single targets, averaged by them."""
    model = lively_trained(case)
    for batch in _each_kind_of_targets(model, case, 5):
        assert batch.targets is not None
        weights = torch.eye(len(batch.targets.state))
        with torch.no_grad():
            each = torch.stack([model.loss(with_weights(batch, weight_T)) for weight_T in weights])
            weight_T = torch.arange(len(each)) % 3 + 0.5
            mean = (each * weight_T).sum() / weight_T.sum()
            expect_close(model.loss(with_weights(batch, weight_T)), mean, "the loss is not the mean by weight")
            expect(each.std() > 1e-3, "the weights are not read: the loss of each target is the same")
            expect_close(model.loss(batch), each.mean(), "without weights the loss is not the mean over targets")
            expect(model.loss(with_weights(batch, 0 * weight_T)).isfinite(), "the loss of weights 0 is not finite")


def check_targets_are_learned(case: Case) -> None:
    """A new model lowers the loss of one batch by 30 percent within 60 steps."""
    model = case.build()
    assert isinstance(model, Trained)
    batch = with_targets(model.sampling, 64, fields=case.fields, per_position=model.reads_sequences)
    tables = model.embedding_parameters()
    dense = [one for one in model.parameters() if all(one is not table for table in tables)]
    optimizers: list[torch.optim.Optimizer] = [LazyAdam(tables, lr=0.03)] if tables else []
    optimizers += [torch.optim.AdamW(dense, lr=0.01)] if dense else []
    losses: list[float] = []
    while not losses or losses[-1] >= 0.7 * losses[0]:
        expect(len(losses) <= 12, f"the loss of one batch falls too little in 60 steps, after each 5: {losses}")
        with torch.no_grad():
            losses.append(float(model.eval().loss(batch)))
        for _ in range(5):
            backpropagate(model.train(), batch)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


def check_a_step_of_targets_on_another_device(case: Case) -> None:
    """A training step on another device has the loss and gradients of the CPU, and never waits for the device."""
    model = lively_trained(case).train()
    stop_dropout(model)
    for batch in _each_kind_of_targets(model, case, 64):
        here, there = copy.deepcopy(model), copy.deepcopy(model)
        expected = backpropagate(here, batch)
        loss, waits = step_far(there, batch)
        expect_close(loss, expected, "the loss of targets differs on another device")
        compare_gradients(here, there, "a batch of targets")
        listing = ", ".join(f"{wait} {count} times" for wait, count in waits.items())
        expect(not waits, f"a training step waits for the device: {listing}")


def check_every_alternative_can_be_selected(case: Case) -> None:
    """Each alternative can be selected in a copy of the fitted model, which then has finite scores of its own."""
    model, batch = lively(case), ragged(9, fields=case.fields)
    assert isinstance(model, FittedRetriever)
    different: list[Tensor] = []
    for settings in model.alternatives():
        one = copy.deepcopy(model)
        one.select(settings)
        scores = score(one, batch, case)
        expect(scores.isfinite().all(), f"a score with {dict(settings)} is NaN or infinite")
        expect(
            all(math.isclose(one.selected[name], value, rel_tol=1e-6) for name, value in settings.items()),
            f"{dict(settings)} were selected, and selected says {one.selected}",
        )
        expect(not any(torch.equal(scores, other) for other in different), f"{dict(settings)} change no score")
        different.append(scores)


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_one_finite_score_an_item,
    check_requests_do_not_see_each_other,
    check_every_layout_scores_alike,
    check_order_of_events_matters_as_declared,
    check_a_retriever_is_saved_and_loaded,
)
"""Checks of all retrievers."""
OF_VECTORS: tuple[Callable[[Case], None], ...] = (check_a_state_reads_no_later_event,)
"""Checks of retrievers that have vectors."""
OF_TARGETS: tuple[Callable[[Case], None], ...] = (
    check_targets_reach_every_parameter,
    check_a_loss_is_the_weighted_mean_over_targets,
    check_targets_are_learned,
    check_a_step_of_targets_on_another_device,
)
"""Checks of retrievers that are trained."""
OF_COUNTS: tuple[Callable[[Case], None], ...] = (check_every_alternative_can_be_selected,)
"""Checks of retrievers that count."""
