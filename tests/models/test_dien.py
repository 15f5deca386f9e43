"""DIEN: the tests that its section of the notes lists, by their letters, and the equations row by row.

(a), (b) and (e), which are about the recurrence alone, are in tests/nn/test_recurrent.py too, by torch's own GRU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from longrec.data import synthetic
from longrec.features.batch import Batch, HistoryBatch
from longrec.metrics import auc
from longrec.models.core.losses import bce_loss
from longrec.models.dien import DIEN, _Path
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, ragged
from longrec.testing.case import Case

SETTINGS: list[dict[str, Any]] = [{"hidden": 6}, *DIEN.variants]


def dien(settings: dict[str, Any]) -> DIEN:
    model = Case("dien", settings).lively(FEW)
    assert isinstance(model, DIEN)
    return model


def path_of(model: DIEN) -> _Path:
    return cast(_Path, model.paths["path_seen"])


def step(path: _Path, h: Tensor, i: Tensor, a: Tensor) -> Tensor:
    """One step of the second recurrence of one row."""
    unit = path.evolution
    own, back = unit.weight @ i + unit.bias, unit.recurrent @ h
    *first, (xr, hr), (xn, hn) = zip(own.split(unit.hidden), back.split(unit.hidden))
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    u = torch.sigmoid(first[0][0] + first[0][1]) if first else None
    if u is None:
        return (1 - a) * h + a * n
    if unit.update == "gru":
        return (1 - u) * h + u * n
    if unit.update == "augru":
        return (1 - a * u) * h + a * u * n
    return (1 - a) * (1 - u) * h + (1 - (1 - a) * (1 - u)) * n


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_e_scan_equals_a_loop_of_cells(settings: dict[str, Any]) -> None:
    """The whole model again as loops over rows and events, from its weights."""
    model, batch = dien(settings), ragged(7, fields=FEW)
    path, embedded, logits = path_of(model), model.embeddings(batch), []
    seen = embedded.histories["seen"]
    events = torch.cat([seen["item"], seen["rating"]], 1)
    for row in range(7):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        e, q = events[start:stop], embedded.features["item"][row]
        inputs = [vectors[row] for vectors in embedded.features.values()]
        h, interests = torch.zeros(path.interest.hidden), []
        for event in e:
            own, back = path.interest.weight @ event + path.interest.bias, path.interest.recurrent @ h
            (xu, xr, xn), (hu, hr, hn) = own.chunk(3), back.chunk(3)
            u, r = torch.sigmoid(xu + hu), torch.sigmoid(xr + hr)
            h = (1 - u) * h + u * torch.tanh(xn + r * hn)
            interests.append(h)
        last = torch.zeros_like(h)
        if interests:
            states = torch.stack(interests)
            query = path.query(q.unsqueeze(0))
            if path.unit is None:
                a = (states @ query.squeeze(0)).softmax(0)
            else:
                assert path.slope is not None
                one = Segments(torch.tensor([0, len(e)]), 1, len(e))
                a = path.unit.weights(path.slope(query), states, one)
            for state, weight in zip(states, a):
                last = step(path, last, state * weight if path.scaled else state, weight)
        inputs += [e.sum(0), last, q * e.sum(0)[: len(q)]]
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", ["paper", "released"])
def test_a_and_b_an_attention_of_zero_and_of_one(gate: str) -> None:
    """Paper: a = 0 keeps the state, a = 1 is a plain step. Released: a = 0 is a plain step, a = 1 is h' = n."""
    path = path_of(dien({"gate": gate, "hidden": 6}))
    h, i = torch.rand(6), torch.rand(6)
    own, back = path.evolution.weight @ i + path.evolution.bias, path.evolution.recurrent @ h
    (xu, xr, xn), (hu, hr, hn) = own.chunk(3), back.chunk(3)
    n, u = torch.tanh(xn + torch.sigmoid(xr + hr) * hn), torch.sigmoid(xu + hu)
    plain = (1 - u) * h + u * n
    unit = path.evolution
    actual = []
    for attention in (0.0, 1.0):
        x_BG = (unit.weight @ i + unit.bias).unsqueeze(0)
        actual.append(unit._step(h.unsqueeze(0), x_BG, torch.tensor([attention])).squeeze(0))
    expected = [h, plain] if gate == "paper" else [plain, n]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_c_longer_neighbors_leave_output_and_auxiliary_loss_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is what a longer row in the batch would bring: the same row alone and beside one ten times as long."""
    model = dien({"hidden": 6})
    path, key = path_of(model), path_of(model).interest.weight.shape[1]
    torch.manual_seed(3)
    e, long = torch.randn(4, key), torch.randn(40, key)
    alone, both = (Segments(torch.tensor(offsets), len(offsets) - 1, offsets[-1]) for offsets in ([0, 4], [0, 4, 44]))
    q = torch.randn(2, path.query.weight.shape[1])
    one, _ = path(q[:1], e, alone)
    two, _ = path(q, torch.cat([e, long]), both)
    torch.testing.assert_close(two[:1], one)
    # Of the auxiliary loss: a mean over steps, so a batch of equal rows has the loss of one of them, whatever stands
    # between them that has no next step. (No negatives: each would be the positive itself.)
    single = Segments(torch.tensor([0, 4, 8]), 2, 8)
    spread = Segments(torch.tensor([0, 4, 4, 8, 9]), 4, 9)
    h = path.interest.states(torch.cat([e, e + 1]), single)
    monkeypatch.setattr(torch, "randint", lambda high, shape, device: torch.tensor([1, 2, 3, 5, 6, 7]))
    expected = path.auxiliary(h, torch.cat([e, e + 1]), single)
    actual = path.auxiliary(torch.cat([h, h[:1]]), torch.cat([e, e + 1, e[:1]]), spread)
    torch.testing.assert_close(actual, expected)
    steps = torch.tensor([0, 1, 2, 4, 5, 6])
    assert path.next is not None
    good = path.next(torch.cat([h[steps], torch.cat([e, e + 1])[steps + 1, : path.shared_width]], 1))
    torch.testing.assert_close(actual, softplus(-good).mean())


def test_d_the_auxiliary_loss_reaches_the_next_step_and_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(dien({"hidden": 6}))
    key = path.interest.weight.shape[1]
    e = torch.randn(8, key, requires_grad=True)
    segments = Segments(torch.tensor([0, 5, 8]), 2, 8)
    h = path.interest.states(e, segments)
    # Only the second step of the first row (t = 1) has a loss, its negative is an event of the other row.
    h_t, next_t, other = h[1:2], e[2:3], e[6:7]
    assert path.next is not None
    pairs = [torch.cat([h_t, one[:, : path.shared_width]], 1) for one in (next_t, other.detach())]
    loss = path.next(pairs[0]).sum() + path.next(pairs[1]).sum()
    (grad,) = torch.autograd.grad(loss, e)
    assert (grad[:3].abs().sum(1) > 0).all()
    assert grad[3:].abs().sum() == 0
    # And the model's own loss pairs h_t with e_{t+1}: moved by one, it is another number. Of the negatives the second
    # is of the same row and the third equals its positive: both are left out, and nothing else leaves them out.
    with torch.no_grad():
        e[6, : path.shared_width] = e[3, : path.shared_width]  # whatever else it says
    monkeypatch.setattr(torch, "randint", lambda high, shape, device: torch.tensor([5, 0, 6, 7, 1, 2]))
    own = path.auxiliary(h, e, segments)
    first = torch.tensor([0, 1, 2, 3, 5, 6])
    good = softplus(-path.next(torch.cat([h[first], e[first + 1, : path.shared_width]], 1))).sum()
    kept, bad = torch.tensor([0, 3, 5, 6]), torch.tensor([5, 7, 1, 2])
    wrong = softplus(path.next(torch.cat([h[kept], e[bad, : path.shared_width]], 1))).sum()
    torch.testing.assert_close(own, (good + wrong) / 6)
    # Where both rows are of one user, no event of the other row is told as a wrong one.
    alone = path.auxiliary(h, e, segments, torch.tensor([4, 4]))
    torch.testing.assert_close(alone, good / 6)


def test_the_auxiliary_loss_reads_shared_columns_only() -> None:
    """Elapsed time or feedback would distinguish an event from another one without any interest."""
    model = dien({"hidden": 6})
    path, common = path_of(model), model.queries.common_widths["seen"]
    assert 0 < common < model.queries.key_widths["seen"]
    segments, e, h = (
        Segments(torch.tensor([0, 4, 8]), 2, 8),
        torch.randn(8, model.queries.key_widths["seen"]),
        torch.randn(8, 6),
    )
    losses = []
    for moved in (0.0, 1.0):
        torch.manual_seed(0)
        losses.append(path.auxiliary(h, torch.cat([e[:, :common], e[:, common:] + moved], 1), segments))
    assert torch.equal(*losses)


def test_loss_is_of_the_label_and_of_what_came_next() -> None:
    model, batch = dien({"hidden": 6, "aux_weight": 0.5}), ragged(9, fields=FEW)
    embedded = model.embeddings(batch)
    e, segments = model.queries.gather_keys(batch, embedded, "seen")
    path = path_of(model)
    torch.manual_seed(5)
    extra = path.auxiliary(path.interest.states(e, segments), e, segments, batch.users)
    torch.manual_seed(5)
    model.interact(batch, embedded)
    torch.testing.assert_close(model.aux_loss(batch, embedded), 0.5 * extra)
    torch.manual_seed(5)
    torch.testing.assert_close(model.loss(batch), bce_loss(model(batch), batch) + 0.5 * extra)


def test_an_auxiliary_loss_without_a_next_step_is_zero() -> None:
    model, batch = dien({"hidden": 6}), ragged(3, fields=FEW)
    empty = {
        name: HistoryBatch({c: v[:0] for c, v in one.columns.items()}, torch.zeros_like(one.offsets))  # type: ignore[index]
        for name, one in batch.histories.items()
    }
    bare: Batch = replace(batch, histories=empty)
    torch.testing.assert_close(model.loss(bare), bce_loss(model(bare), bare))
    model.loss(bare).backward()


@pytest.mark.slow
@pytest.mark.parametrize("model", synthetic.generate_dataset("drifting_interest", 2).must, ids=str)
def test_an_interest_that_drifts_is_learned_by_order(model: dict[str, Any], tmp_path: Path) -> None:
    dataset, label, score, row = _trained(model, tmp_path)
    assert auc(label, score) >= dataset.required_auc(auc(label, dataset.true_probability[row]))


@pytest.mark.parametrize("model", [{"name": "din"}], ids=str)
def test_an_interest_that_drifts_is_not_learned_by_sums(model: dict[str, Any], tmp_path: Path) -> None:
    assert model in synthetic.generate_dataset("drifting_interest", 2).must_not
    _, label, score, _ = _trained(model, tmp_path)
    assert abs(auc(label, score) - 0.5) < 0.06


def _trained(model: dict[str, Any], folder: Path) -> tuple[synthetic.SyntheticDataset, Any, Any, Any]:
    from longrec.training.fit import train

    dataset = synthetic.generate_dataset("drifting_interest")
    job = dataset.job(
        synthetic.write(dataset, folder), model, runs=str(folder / "runs"), tensorboard="off", mlflow="off"
    )
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    table = train({**job, "name": "x", "evaluate": {"n_resamples": 2}}, quiet=True).predictions("test")
    return dataset, *(table[name].to_numpy() for name in ("label", "score", "row"))
