"""Checks of re-rankers: which candidates see each other, what their scores are, how they are trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from longrec.features.batch import Batch, Layout
from longrec.models.core import artifact
from longrec.models.core.kinds import Reranker
from longrec.testing.batches import grouped, pick, shared
from longrec.testing.case import Case, backpropagate
from longrec.testing.devices import compare_gradients, step_far, stop_dropout
from longrec.testing.expect import ConformanceError, expect, expect_close
from longrec.training.sparse_optimizers import LazyAdam

OWNER = (2, 0, 0, 1, 3, 3, 3, 2, 0, 0)
"""Request of each candidate of a batch: lists of 4, 1, 2 and 3 candidates."""


def lively(case: Case) -> Reranker:
    """Return a model in evaluation mode with parameters unlike their initial values.

    Raises:
        ConformanceError: if it is no re-ranker.
    """
    model = case.build(fields=case.few)
    if not isinstance(model, Reranker):
        raise ConformanceError(f"{type(model).__name__} is no Reranker")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def probabilities(model: Reranker, batch: Batch) -> Tensor:
    """Return the probability of every candidate within its list, without a graph of gradients."""
    with torch.no_grad():
        return model.score_lists(batch).probability


def take(batch: Batch, candidates: Sequence[int]) -> Batch:
    """Return the grouped batch of some candidates, in this order, and of their requests."""
    owner = batch.layout.host_owner
    assert owner is not None
    assert batch.label is not None
    kept, own = np.unique(owner[list(candidates)], return_inverse=True)
    return replace(
        batch,
        layout=Layout.grouped(len(kept), own),
        requests={name: pick(column, kept.tolist()) for name, column in batch.requests.items()},
        candidates={name: pick(column, candidates) for name, column in batch.candidates.items()},
        histories={name: one.select_requests(torch.from_numpy(kept)) for name, one in batch.histories.items()},
        label=batch.label[list(candidates)],
    )


def as_grouped(batch: Batch) -> Batch:
    """Return a shared batch as a grouped one of the same request."""
    return replace(batch, layout=Layout.grouped(1, np.zeros(batch.size, np.int64)))


def check_probabilities_of_a_list_sum_to_one(case: Case) -> None:
    """Every list has finite probabilities that sum up to 1. So a list of one candidate has the probability 1."""
    model, batch = lively(case), grouped(OWNER, fields=case.few)
    actual = probabilities(model, batch)
    expect(actual.shape == (len(OWNER),), f"{len(OWNER)} candidates have probabilities of shape {tuple(actual.shape)}")
    expect(actual.dtype == torch.float32, f"probabilities are {actual.dtype}, expected float32")
    sums = torch.zeros(4).index_add(0, torch.tensor(OWNER), actual)
    expect_close(sums, torch.ones(4), "the probabilities of a list do not sum up to 1")
    with torch.no_grad():
        score = model(batch)
    expect_close(model.score_lists(batch).lists.softmax(score), actual, "forward returns other scores than score_lists")


def check_lists_do_not_see_each_other(case: Case) -> None:
    """The scores of a list are the same alone, beside any other list, and for any order of its candidates."""
    model, batch = lively(case), grouped(OWNER, fields=case.few)
    together = probabilities(model, batch)
    for name, candidates in {
        "the first list": [1, 2, 8, 9],
        "a list of one": [3],
        "three lists": [4, 0, 5, 3, 6, 7],
        "candidates in another order": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        "candidates in the order of their lists": [1, 2, 8, 9, 3, 0, 7, 4, 5, 6],
    }.items():
        actual = probabilities(model, take(batch, candidates))
        expect_close(actual, together[candidates], f"{name}: scores change with other lists, or with the order")


def check_a_shared_list_scores_as_grouped(case: Case) -> None:
    """The candidates of one request have the same scores in the layout of serving and in that of training."""
    model = lively(case)
    for candidates, events in ((6, 5), (1, 4), (4, 0), (70, 3)):
        batch = shared(candidates, events, fields=case.few)
        where = f"a shared list of {candidates} candidates and {events} events"
        expect_close(probabilities(model, batch), probabilities(model, as_grouped(batch)), f"{where} scores otherwise")


def check_no_layer_computes_on_padding(case: Case) -> None:
    """Lists of very different lengths give each linear layer and norm one row per candidate, and none for padding."""
    model, rows = lively(case), dict[str, int]()
    batch = grouped([0] * 40 + [1, 2, 2], fields=case.few)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            rows[name] = max(rows.get(name, 0), inputs[0].numel() // inputs[0].shape[-1])

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and not name.startswith("base."):
            module.register_forward_hook(watch(name))
    probabilities(model, batch)
    expect(rows, "the model has no linear layer that its candidates go through")
    padded = {name: count for name, count in rows.items() if count > batch.size}
    expect(not padded, f"{batch.size} candidates, and layers compute on more rows: {padded}")


def check_lists_reach_every_parameter(case: Case) -> None:
    """The loss reaches every parameter but those of the base, which no step moves. Gradients of tables are sparse."""
    model = lively(case).train()
    backpropagate(model, grouped(np.arange(60).repeat(5).tolist(), fields=case.few))
    tables = {id(table) for table in model.embedding_parameters()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.startswith("base."):
            expect(not parameter.requires_grad and grad is None, f"{name} is of the base, and is trained")
            continue
        if grad is None:
            raise ConformanceError(f"{name} gets no gradient")
        expect(grad.is_sparse == (id(parameter) in tables), f"{name}: tables, and only tables, take sparse gradients")
        dense = grad._values() if grad.is_sparse else grad
        expect(dense.isfinite().all() and dense.any(), f"the gradient of {name} is not finite, or zero")
    expect(not model.base.training, "the base is in training mode, so that its scores are not those that are served")


def check_lists_are_learned(case: Case) -> None:
    """Training lowers the loss of one batch by 20 percent within 40 steps. Lists without a click change no loss."""
    model, batch = case.build(fields=case.few), grouped(np.arange(16).repeat(4).tolist(), fields=case.few)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = [one for one in model.parameters() if id(one) not in tables and one.requires_grad]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.03), torch.optim.AdamW(dense, lr=0.01)]
    assert batch.label is not None
    label_C = torch.where(torch.arange(64) < 32, batch.label, 0.0)
    with torch.no_grad():
        of_half = model.eval().loss(take(replace(batch, label=label_C), range(32)))
        of_all = model.loss(replace(batch, label=label_C))
    expect_close(of_all, of_half, "lists without a click change the loss")

    def measure() -> float:
        with torch.no_grad():
            return float(model.eval().loss(batch))

    losses = [measure()]
    while losses[-1] >= 0.8 * losses[0]:
        expect(len(losses) <= 8, f"the loss of one batch falls too little in 40 steps, after each 5: {losses}")
        model.train()
        for _ in range(5):
            backpropagate(model, batch)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        losses.append(measure())


def check_bfloat16_keeps_the_initial_order(case: Case) -> None:
    """Under autocast to bfloat16 the initial order is that of float32, and probabilities are near. So is the loss."""
    model, batch = lively(case), grouped(np.arange(12).repeat(20).tolist(), fields=case.few)
    with torch.no_grad():
        expected, loss = model.score_lists(batch), model.loss(batch)
        with torch.autocast("cpu", torch.bfloat16):
            actual, narrow = model.score_lists(batch), model.loss(batch)
    moved = int((actual.rank != expected.rank).sum())
    expect(moved == 0, f"bfloat16 moves {moved} of {batch.size} candidates in the initial order")
    away = float((actual.probability - expected.probability).abs().max())
    expect(away < 0.1, f"bfloat16 moves a probability by {away:.2g}")
    expect(narrow.dtype == torch.float32, f"the loss under autocast is {narrow.dtype}, expected float32")
    expect(abs(float(narrow - loss)) < 0.1, f"the loss under autocast is {float(narrow)}, not {float(loss)}")


def check_a_step_of_lists_on_another_device(case: Case) -> None:
    """A training step on another device has the loss and gradients of the CPU, and hardly waits for the device."""
    here, batch = lively(case).train(), grouped(sorted(OWNER), fields=case.few)
    stop_dropout(here)
    there = copy.deepcopy(here)
    torch.manual_seed(0)
    expected = backpropagate(here, batch)
    loss, waits = step_far(there, batch)
    expect_close(loss, expected, "the loss of lists differs on another device")
    compare_gradients(here, there, "a batch of lists")
    if here.base.reads_groups:  # others need a copy of the history per candidate, whose size the host must know
        listing = ", ".join(f"{wait} {count} times" for wait, count in waits.items())
        expect(sum(waits.values()) <= 1, f"a training step waits for the device: {listing}")


def check_a_reranker_is_saved_and_loaded(case: Case) -> None:
    """A model that was saved and loaded has its settings, its fields and, to the bit, its scores."""
    model, batch = lively(case), grouped(OWNER, fields=case.few)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        again = artifact.load(folder)
    if not isinstance(again, type(model)):
        raise ConformanceError(f"a {type(model).__name__} is loaded as a {type(again).__name__}")
    expect(again.config == model.config, f"the settings change when saved: {model.config} -> {again.config}")
    expect(again.fields == model.fields, "the fields change when saved")
    same = torch.equal(probabilities(again.eval(), batch), probabilities(model, batch))
    expect(same, "the scores change when saved and loaded")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_probabilities_of_a_list_sum_to_one,
    check_lists_do_not_see_each_other,
    check_a_shared_list_scores_as_grouped,
    check_no_layer_computes_on_padding,
    check_lists_reach_every_parameter,
    check_lists_are_learned,
    check_bfloat16_keeps_the_initial_order,
    check_a_step_of_lists_on_another_device,
    check_a_reranker_is_saved_and_loaded,
)
"""Checks of every re-ranker."""
