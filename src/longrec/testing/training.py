"""Checks of how every model is trained: its start, its loss, its gradients, its steps."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from longrec.models.core import artifact
from longrec.models.core.kinds import Encoder, Ranker
from longrec.models.core.losses import bce_loss
from longrec.testing.batches import ragged
from longrec.testing.case import Case, backpropagate, logits, scores
from longrec.testing.expect import ConformanceError, expect, expect_close, expect_config_error
from longrec.training import negative_correction
from longrec.training.settings import FitConfig
from longrec.training.sparse_optimizers import LazyAdam


def check_every_parameter_gets_a_gradient(case: Case) -> None:
    """The loss reaches every parameter. Gradients of embedding tables, and of nothing else, are sparse."""
    model = case.lively().train()
    backpropagate(model, ragged(300, fields=case.fields))
    tables = {id(table) for table in model.embedding_parameters()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if not parameter.requires_grad:
            expect(grad is None, f"{name} is frozen and gets a gradient")
            continue
        if grad is None:
            raise ConformanceError(f"{name} gets no gradient")
        sparse = "sparse" if grad.is_sparse else "dense"
        expect(
            grad.is_sparse == (id(parameter) in tables),
            f"{name}: {sparse}, but tables, and only tables, take sparse ones",
        )
        dense = grad._values() if grad.is_sparse else grad
        expect(dense.isfinite().all(), f"the gradient of {name} holds NaN or infinity")
        expect(dense.abs().sum() > 0, f"{name} gets a gradient of zero")


def check_the_first_predictions_are_the_base_rates(case: Case) -> None:
    """A new model that starts at rates predicts them on average, label by label; nothing but output biases moved."""
    model, batch = case.build_scorer(), ragged(300, fields=case.fields)
    rates = torch.tensor([0.01, *[0.3] * len(model.targets)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.start_at_rates(rates.tolist())
    moved = sum(int((tensor != before[name]).sum()) for name, tensor in model.state_dict().items())
    nets = [net for net in model.modules() if isinstance(net, Ranker | Encoder)]
    most = len({bias.data_ptr() for net in nets for bias in net.output_biases()})
    expect(
        1 <= moved <= most, f"start_at_rates moved {moved} numbers, expected 1 to {most}: one bias per label and net"
    )
    with torch.no_grad():
        model.eval()
        actual_BK = model.logits(batch) if model.targets else model(batch).unsqueeze(1)
    first = actual_BK.sigmoid().mean(0)
    # What random weights add to the bias is the same for no two seeds, and small.
    away = (first.logit() - rates.logit()).abs().max()
    expect(away < 0.5, f"first predictions of {first.tolist()} on average, expected about {rates.tolist()}")


def check_a_loss_is_the_weighted_mean_over_rows(case: Case) -> None:
    """The loss of any weights is that of single rows, averaged by them: no label counts more or less than it weighs."""
    model, batch = case.frozen(), ragged(9, fields=case.fields)
    batch = replace(batch, task_labels={name: target.nan_to_num() for name, target in batch.task_labels.items()})

    def loss(weight_B: Tensor | None) -> Tensor:
        torch.manual_seed(0)  # what a model draws for a loss of its own
        with torch.no_grad():
            return model.loss(replace(batch, weight=weight_B))

    each = torch.stack([loss(weight) for weight in torch.eye(9)])
    weight_B = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 0.0, 1.0, 7.0, 0.25])
    mean = (each * weight_B).sum() / weight_B.sum()
    expect_close(loss(weight_B), mean, "the loss is not the mean over rows by batch.weight")
    expect_close(loss(torch.full((9,), 4.0)), loss(None), "equal weights give another loss than none")
    expect(loss(torch.zeros(9)).isfinite(), "the loss of rows that all weigh 0 is NaN or infinite")
    expect(each.std() > 1e-3, "batch.weight is not read: the loss of each row is the same")


def check_the_correction_of_sampled_negatives_is_applied_once(case: Case) -> None:
    """Weights saved while a model is corrected score all rows: by one shift of every logit, whatever is built on what.

    Afterwards nothing of the model has moved. A model of several labels is refused.
    """
    model, batch = case.lively(), ragged(9, fields=case.fields)
    config = FitConfig(negative_rate=0.1)
    if model.targets or len(model.output_biases()) != 1:
        expect_config_error(
            lambda: negative_correction.check_negative_rate(model, config),
            "fit.negative_rate: 0.1",
            "a model of several labels, or without an output bias, with fit.negative_rate",
        )
        return
    negative_correction.check_negative_rate(model, config)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = logits(model, batch)
    vectors = scores(model, batch) if isinstance(model, Encoder) else None
    with tempfile.TemporaryDirectory() as folder:
        with negative_correction.correct_output_bias(model, 0.1):
            artifact.save(model, folder)
        again = artifact.load(folder)
    if not isinstance(again, Ranker | Encoder):
        raise ConformanceError(f"a {type(model).__name__} is loaded as a {type(again).__name__}")
    again.eval()
    shifted = "log(0.1) added to the output bias is not log(0.1) added to every logit"
    expect_close(logits(again, batch), before + math.log(0.1), shifted)
    if vectors is not None:
        expect(torch.equal(scores(again, batch), vectors), "the output bias changes the vectors of encode")
    for name, tensor in model.state_dict().items():
        expect(torch.equal(tensor, kept[name]), f"{name} has moved after the correction")


def check_only_touched_rows_move(case: Case) -> None:
    """A step moves some rows of every embedding table, and only rows that the batch read."""
    model = case.lively().train()
    before = [table.detach().clone() for table in model.embedding_parameters()]
    optimizer = LazyAdam(model.embedding_parameters(), lr=0.1, l2=0.01)
    backpropagate(model, ragged(6, fields=case.fields))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    touched = []
    for table in model.embedding_parameters():
        if table.grad is None or not table.grad.is_sparse:
            raise ConformanceError(f"the table {names[id(table)]} has no sparse gradient")
        touched.append(table.grad._indices()[0])
    optimizer.step()
    for table, old, rows in zip(model.embedding_parameters(), before, touched, strict=True):
        moved = (table != old).any(1).nonzero().squeeze(1)
        expect(len(moved) > 0, f"a step moves no row of the table {names[id(table)]}")
        expect(set(moved.tolist()) <= set(rows.tolist()), f"a step moves rows of {names[id(table)]} without a gradient")


def check_learns(case: Case) -> None:
    """A new model lowers the loss of the label on one batch by 30 percent within 40 steps."""
    model, batch = case.build_scorer(), ragged(64, fields=case.fields)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.03), torch.optim.AdamW(dense, lr=0.01)]

    def of_label() -> float:  # a loss may have parts that nothing in this batch tells
        with torch.no_grad():
            return float(bce_loss(model(batch), batch))

    losses = [of_label()]
    while losses[-1] >= 0.7 * losses[0]:
        expect(len(losses) <= 8, f"the loss of one batch falls too little in 40 steps, after each 5: {losses}")
        for _ in range(5):
            backpropagate(model, batch)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        losses.append(of_label())


def check_bfloat16_is_near(case: Case) -> None:
    """Scores under autocast to bfloat16 are near those of float32. The loss stays in float32."""
    model, batch = case.lively(), ragged(600, fields=case.fields)
    expected = scores(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        actual = scores(model, batch).float()
        loss = model.train().loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    expect(loss.dtype == torch.float32, f"the loss under autocast is {loss.dtype}, expected float32")
    expect(loss.isfinite(), "the loss under autocast to bfloat16 is NaN or infinite")
    away, spread = float((actual - expected).abs().mean()), float(expected.std())
    expect(away < 0.05 * spread + 0.02, f"bfloat16 moves scores by {away:.2g} on average, which differ by {spread:.2g}")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_every_parameter_gets_a_gradient,
    check_the_first_predictions_are_the_base_rates,
    check_a_loss_is_the_weighted_mean_over_rows,
    check_the_correction_of_sampled_negatives_is_applied_once,
    check_only_touched_rows_move,
    check_learns,
    check_bfloat16_is_near,
)
"""Checks of the training of every model."""
