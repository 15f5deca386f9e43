"""TiSSA: the tests that its sections of the notes list, by name, and the equations row by row."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from synthetic_runs import aucs_of, run_in
from torch import Tensor, nn
from torch.nn.functional import linear

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import HistoryBatch
from longrec.features.computed_columns import compute_time_gaps, compute_time_since_previous
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.tissa import TiSSA, _Path
from longrec.nn.segments import Segments
from longrec.nn.slices import Slices
from longrec.testing.batches import FIELDS, GAP, ITEM, RATING, SINCE, grouped, ragged, shared
from longrec.testing.case import Case

TIMED = Fields((Field("user", "id", 40, side="user"), ITEM), {"seen": (RATING, ITEM, GAP, SINCE)})
SMALL: dict[str, Any] = {"hidden": 6, "heads": 2, "mlp": [16], "slices": 4, "newest": 12}
SETTINGS: list[dict[str, Any]] = [SMALL, *TiSSA.variants]


def tissa(settings: Mapping[str, Any] = SMALL, fields: Fields = TIMED) -> TiSSA:
    model = Case("tissa", dict(settings)).lively(fields)
    assert isinstance(model, TiSSA)
    return model


def path_of(model: TiSSA, history: str = "seen") -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def rows(*lengths: int) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def make_history(
    gaps: Tensor | None = None, since: Tensor | None = None, lengths: tuple[int, ...] = ()
) -> HistoryBatch:
    columns = {name: ids for name, ids in (("time_gap", gaps), ("time_since_previous", since)) if ids is not None}
    return HistoryBatch(columns, rows(*lengths).offsets)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_row_by_row(settings: dict[str, Any]) -> None:
    model, batch = tissa(settings), ragged(7, longest=9, fields=TIMED)
    path, embedded, expected = path_of(model), model.embeddings(batch), []
    seen, columns = embedded.histories["seen"], batch.histories["seen"].columns
    k, newest, width = model.config.slices, model.config.newest, model.config.hidden
    assert path.gates is not None
    for row in range(7):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        h, slices = torch.zeros(width), {}  # type: ignore[var-annotated]
        for at in range(start, stop):
            x = torch.cat([seen["item"][at], seen["rating"][at], seen["time_gap"][at]])
            dt = 0.1 * max(int(cast(Tensor, columns["time_since_previous"])[at]) - 2, 0)
            unit = path.recurrence
            (xz, xr, xn), (hz, hr, hn) = (unit.weight @ x + unit.bias).chunk(3), (unit.recurrent @ h).chunk(3)
            dz, dr = (dt * path.gates.weight[:, 0]).chunk(2)
            z, r = (xz + hz + dz).sigmoid(), (xr + hr + dr).sigmoid()
            h = (1 - z) * h + z * (xn + r * hn).tanh()
            age = int(cast(Tensor, columns["time_gap"])[at]) - 2  # floor of the log2 of the seconds
            slices.setdefault(min(max(age - newest + 1, 0), k - 1), []).append(h)
        u: list[Tensor] = []
        slice_vectors: list[Tensor] = []
        for back in sorted(slices, reverse=True):
            states = torch.stack(slices[back])
            slice_vectors.append(path.event(states).squeeze(1).softmax(0) @ states)
            u.append(fuse(path, slice_vectors))
        q = embedded.features["item"][row]
        v = torch.zeros(width)
        if u:
            query = path.of_candidate.weight @ q + path.of_slice.bias
            scores = [path.target.weight[0] @ (path.of_slice.weight @ one + query).sigmoid() for one in u]
            v = torch.stack(scores).softmax(0) @ torch.stack(u)
        inputs = torch.cat([embedded.features["user"][row], q, v])
        expected.append(model.top(inputs.unsqueeze(0))[0, 0])
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-4, atol=1e-5)


def fuse(path: _Path, slices: list[Tensor]) -> Tensor:
    """u of the last of some slices, head by head."""
    *before, own = slices
    (w_c, w_q, w_v), among = path.among.inner.weight.chunk(3), path.among
    size = len(w_c) // among.heads
    g = torch.zeros(among.heads * size)
    for head in range(among.heads) if before else ():
        span = slice(head * size, (head + 1) * size)
        scores = torch.stack([
            among.score[head] @ (w_c[span] @ one + w_q[span] @ own + among.bias[span]).sigmoid() for one in before
        ])  # fmt: skip
        g[span] = scores.softmax(0) @ torch.stack([w_v[span] @ one for one in before])
    g = among.outer.weight @ g
    f = linear(torch.cat([g, own]), path.fusion.weight, path.fusion.bias).sigmoid()
    return f * own + (1 - f) * g


def test_without_time_it_is_torchs_gru() -> None:
    """dt = 0, and W_3 = 0, each for itself."""
    path, own = path_of(tissa()), nn.GRU(48, 6, batch_first=True)
    order, unit = [1, 0, 2], path.recurrence  # torch's gates are r, z, n, and its z keeps
    weight, recurrent, bias = (
        torch.cat([weights.data.chunk(3)[at] for at in order]) for weights in (unit.weight, unit.recurrent, unit.bias)
    )
    sign = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(6)
    own.weight_ih_l0.data, own.weight_hh_l0.data = weight * sign[:, None], recurrent * sign[:, None]
    own.bias_ih_l0.data, own.bias_hh_l0.data = bias * sign, torch.zeros(18)
    e = torch.randn(9, 48)
    expected = own(e.unsqueeze(0))[0][0]
    assert (path.states(e, rows(9), make_history(since=torch.full((9,), 30))) - expected).abs().max() > 1e-3
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(path.states(e, rows(9), make_history(since=torch.full((9,), 2))), expected, **near)
    assert path.gates is not None
    path.gates.weight.data.zero_()
    torch.testing.assert_close(
        path.states(e, rows(9), make_history(since=torch.full((9,), 30))), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("unknown", [0, 1])
def test_a_missing_interval_adds_nothing(unknown: int) -> None:
    """The first event of a history has no event before it: data preparation says that it is missing, 0."""
    ids = compute_time_since_previous(np.array([5_000, 9_000, 8_000, 70_000]), np.array([0, 2, 4]))
    assert ids.tolist() == [0, 4, 0, 7]
    path, e = path_of(tissa()), torch.randn(4, 48)
    assert path.gates is not None
    states = path.states(e, rows(2, 2), make_history(since=torch.from_numpy(ids)))
    path.gates.weight.data *= 2
    more = path.states(e, rows(2, 2), make_history(since=torch.from_numpy(ids)))
    torch.testing.assert_close(more[[0, 2]], states[[0, 2]])
    assert ((more - states)[[1, 3]].abs().amax(1) > 1e-3).all()
    plain = path.recurrence.states(e, rows(2, 2))
    torch.testing.assert_close(path.states(e, rows(2, 2), make_history(since=torch.full((4,), unknown))), plain)


def test_slices_count_from_the_time_of_the_request() -> None:
    """Request time - event time, whatever the time between events."""
    path, timestamp = path_of(tissa()), 10**9
    times = timestamp - 1_000 * np.array([2**14, 2**14 - 1, 5, 1])
    ids = torch.from_numpy(compute_time_gaps(np.full(4, timestamp), times))
    early = torch.from_numpy(compute_time_gaps(np.full(4, timestamp + 1_000 * 2**13), times))
    assert (3 - path.slice_numbers(rows(4), make_history(ids))).tolist() == [3, 3, 0, 0]
    assert (3 - path.slice_numbers(rows(4), make_history(early))).tolist() == [3, 3, 2, 2]


def test_slices_are_half_open() -> None:
    """By the seconds between an event and the impression, as the column tells them."""
    path = path_of(tissa())
    ends = [2**12 - 1, 2**13 - 1, 2**14 - 1]
    seconds = np.array([0, 1, *(second for end in ends for second in (end - 1, end)), 10**9])
    ids = torch.from_numpy(compute_time_gaps(1_000 * seconds, np.zeros_like(seconds)))
    expected = [0, 0, 0, 1, 1, 2, 2, 3, 3]  # back from the newest slice
    assert (3 - path.slice_numbers(rows(9), make_history(ids))).tolist() == expected


def test_a_history_without_times_is_cut_by_position() -> None:
    bare = Fields((ITEM,), {"seen": (ITEM,)})
    path = path_of(tissa(SMALL, bare))
    assert path.gates is None
    actual = 3 - path.slice_numbers(rows(17, 0, 2), make_history(lengths=(17, 0, 2)))
    assert actual.tolist() == [*[3] * 10, 2, 2, 2, 2, 1, 1, 0, 1, 0]
    together = Segments(torch.tensor([0, 17]), 3, 17, shared=True)
    assert torch.equal(3 - path.slice_numbers(together, make_history(lengths=(17,))), actual[:17])


def test_order_inside_a_slice_does_not_matter_to_it() -> None:
    """Of the states: the recurrence itself knows the order."""
    path = path_of(tissa())
    h, slice_U = torch.randn(7, 6), torch.tensor([0, 0, 0, 2, 2, 3, 1])
    turned = [2, 0, 1, 4, 3, 5, 6]
    for segments in (rows(5, 2), Segments(torch.tensor([0, 7]), 2, 7, shared=True)):

        def pool(order: list[int], segments: Segments = segments) -> tuple[Tensor, Tensor]:
            return Slices(slice_U[order], 4, segments).pool(path.event(h[order]).squeeze(1), h[order])

        l_RSD, share = pool([*range(7)])
        l_turned, share_turned = pool(turned)
        torch.testing.assert_close(l_turned, l_RSD)
        torch.testing.assert_close(share_turned, share[turned])
        mixed = [1, 4, 0, 3, 2, 6, 5]  # events of a slice need not stand together
        torch.testing.assert_close(pool(mixed)[1], share[mixed])
        filled = Slices(slice_U, 4, segments).filled_RS
        assert filled[0].tolist() == [True, segments.shared, True, segments.shared]


def test_a_slice_with_nothing_before_it_gathers_nothing() -> None:
    path = path_of(tissa())
    l_RSD, real = torch.randn(3, 4, 6, requires_grad=True), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    g_RSD = path.among(l_RSD, real.bool())
    nothing = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert g_RSD[nothing].abs().max() == 0
    assert (g_RSD[~nothing].abs().amax(1) > 0).all()
    (grad,) = torch.autograd.grad(g_RSD.square().sum(), l_RSD)
    assert grad.isfinite().all()


def test_an_empty_slice_changes_nothing() -> None:
    """Two slices have the same effect if empty ones are between, before or after them."""
    path, e, q = path_of(tissa()), torch.randn(5, 48), torch.randn(1, 16)

    def run(gaps: list[int]) -> Tensor:
        v_BD, w_BS, *_ = path(q, e, rows(5), make_history(torch.tensor(gaps), torch.full((5,), 4)))
        assert (w_BS > 0).sum() == 2
        return cast(Tensor, v_BD)

    near, far = run([14, 14, 14, 13, 12]), run([16, 17, 14, 14, 14])
    apart = run([20, 20, 5, 5, 5])
    assert (far - near).abs().max() > 1e-4  # a slice more or less of an event is another thing
    torch.testing.assert_close(apart, far)


@pytest.mark.parametrize("fields", [TIMED, FIELDS], ids=["timed", "fields"])
def test_weights_of_events_sum_to_one(fields: Fields) -> None:
    model, batch = tissa(SMALL, fields), ragged(8, fields=fields)
    for history, weights in model.explain(batch).items():
        offsets = batch.histories[history].offsets
        totals = torch.stack([weights[start:stop].sum() for start, stop in zip(offsets[:-1], offsets[1:])])
        torch.testing.assert_close(totals, (offsets.diff() > 0).float())
    together = model.explain(shared(3, 5, fields=fields))["seen"]
    assert together.shape == (3, 5)
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    several = grouped([2, 0, 0, 1, 2], fields=fields)
    for history, weights in model.explain(several).items():
        torch.testing.assert_close(weights, model.explain(several.ungroup())[history])


def test_the_time_between_events_is_no_other_input() -> None:
    model = tissa(SMALL, FIELDS)
    assert "time_since_previous" not in model.embeddings.widths
    assert path_of(model, "liked").gates is not None
    assert path_of(model, "seen").gates is None


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="tissa reads a history, and the schema has none"):
        build({"name": "tissa"}, Fields((ITEM,), {}))
    with pytest.raises(ConfigError, match="model.slices"):
        build({"name": "tissa", "slices": 1}, TIMED)


def _measure(model: Mapping[str, Any], folder: Path, without: tuple[str, ...] = ()) -> tuple[float, float]:
    """AUC and bar in the world where only the time that passed tells."""
    dataset = generate_dataset("periodic")
    schema = copy.deepcopy(dict(dataset.schema))
    history = schema["histories"]["clicks"]
    history["features"] = [name for name in history["features"] if name not in without]
    dataset = replace(dataset, schema=schema)
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, model, folder))
    return actual, dataset.required_auc(bayes_auc)


def test_what_was_wanted_a_day_ago_is_learned_by_time(tmp_path: Path) -> None:
    model = generate_dataset("periodic", 2).must[0]
    assert model["name"] == "tissa"
    actual, bar = _measure(model, tmp_path)
    assert actual >= bar


@pytest.mark.parametrize(
    ("model", "without"),
    [({"name": "tissa", "hidden": 8, "heads": 2}, ("time_gap", "time_since_previous")), ({"name": "pooling"}, ())],
    ids=["tissa", "pooling"],
)
def test_what_was_wanted_a_day_ago_is_not_learned_by_order_or_sums(
    model: dict[str, Any], without: tuple[str, ...], tmp_path: Path
) -> None:
    assert {"name": "pooling"} in generate_dataset("periodic", 2).must_not
    actual, _ = _measure({**model, "mlp": [16]}, tmp_path, without)
    assert abs(actual - 0.5) < 0.07
