"""HSTU: its equations by einsum, causality, windows, padding, n, buckets of time, and targets at their own times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import HistoryBatch, Targets
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.hstu import HSTU
from longrec.models.hstu_next_item import HSTUNextItem
from longrec.nn.event_times import EventTimes, bucket_times, decode_gaps, read_times
from longrec.nn.hstu import HSTUStack, StackForm
from longrec.nn.pointwise_attention import Bands, RelativeBias
from longrec.nn.segments import Segments
from longrec.testing.batches import GAP, SINCE, offsets, ragged, repeated, shared, take
from longrec.testing.case import Case
from longrec.testing.suite import check_case

ITEM, KIND, RATING = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item"), Field("rating", "id", 8)
TIMED = Fields((Field("user", "id", 40, side="user"), ITEM, KIND), {"seen": (ITEM, KIND, RATING, GAP, SINCE)})
FORM = StackForm(width=6, layers=2, heads=2, head_width=3, n=20, window=20, timed=False, dropout=0.0)
LENGTHS = [5, 0, 1, 7, 3]


def stack(**changes: Any) -> HSTUStack:
    torch.manual_seed(0)
    layers = HSTUStack(replace(FORM, **changes))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layers.eval()


def segments_of(lengths: list[int]) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def times_of(lengths: list[int]) -> EventTimes:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 30, (sum(lengths),), generator=generator) for _ in range(2)]
    return read_times(ids[0], ids[1], segments_of(lengths))


def by_einsum(layers: HSTUStack, x: Tensor, at: Tensor | None = None, following: Tensor | None = None) -> Tensor:
    """The states of one row, with all pairs and the mask of a band."""
    form = layers.form
    distance = torch.arange(len(x)).unsqueeze(1) - torch.arange(len(x))
    seen = (distance >= 0) & (distance < form.window)
    for layer in layers.layers:
        shape = (len(x), form.heads, form.head_width)
        every = F.silu(F.layer_norm(x, x.shape[1:], eps=1e-6) @ layer.inner.weight.t())
        u, q, k, v = (one.reshape(shape) for one in every.chunk(4, 1))
        s = torch.einsum("ihd,jhd->hij", q, k) + layer.bias.position[distance.clamp(0, form.window - 1)]
        if at is not None and following is not None:
            seconds = ((following.unsqueeze(1) - at).double() / 2).abs().clamp(min=1)
            s = s + layer.bias.time[(seconds.log() / 0.301).floor().long().clamp(0, 128)]
        o = torch.einsum("hij,jhd->ihd", F.silu(s) / form.n * seen, v).flatten(1)
        x = x + (F.layer_norm(o, o.shape[1:], eps=1e-6) * u.flatten(1)) @ layer.outer.weight.t() + layer.outer.bias
    return x


@pytest.mark.parametrize(("window", "timed"), [(20, False), (20, True), (3, True), (1, False)])
def test_the_equations_and_jagged_rows_equal_single_ones(window: int, timed: bool) -> None:
    layers, segments = stack(window=window, timed=timed), segments_of(LENGTHS)
    x_ND, times = torch.randn(16, 6), times_of(LENGTHS) if timed else None
    with torch.no_grad():
        actual = layers(x_ND, segments, times)
        for first, stop in zip(segments.offsets.tolist(), segments.offsets.tolist()[1:]):
            own = () if times is None else (times.at[first:stop], times.following[first:stop])
            torch.testing.assert_close(
                actual[first:stop], by_einsum(layers, x_ND[first:stop], *own), atol=1e-5, rtol=1e-4
            )


def test_with_biases_of_zero_it_is_the_formula_without_them() -> None:
    layers, x_ND = stack(layers=1, heads=1, head_width=6), torch.randn(7, 6)
    with torch.no_grad():
        layers.layers[0].bias.position.zero_()  # type: ignore[union-attr,operator]
        u, v, q, k = (
            F.silu(layers.layers[0].inner(F.layer_norm(x_ND, (6,), eps=1e-6))).chunk(4, 1)[i] for i in (0, 3, 1, 2)
        )  # type: ignore[operator]
        a = F.silu(torch.einsum("id,jd->ij", q, k)) / 20 * torch.ones(7, 7).tril()
        y = F.layer_norm(torch.einsum("ij,jd->id", a, v), (6,), eps=1e-6) * u
        torch.testing.assert_close(
            layers(x_ND, segments_of([7])), x_ND + layers.layers[0].outer(y), atol=1e-5, rtol=1e-4
        )  # type: ignore[operator]


@pytest.mark.parametrize("window", [20, 3])
def test_causality(window: int) -> None:
    """A state has a gradient of the events of its band and of the bands before, and of no later event."""
    layers, x_ND = stack(window=window), torch.randn(9, 6, requires_grad=True)
    states = layers(x_ND, segments_of([9]))
    for at in (0, 4, 8):
        (grad,) = torch.autograd.grad(states[at].sum(), x_ND, retain_graph=True)
        oldest = max(at - 2 * (window - 1), 0)
        assert (grad.abs().sum(1) > 0).tolist() == [oldest <= other <= at for other in range(9)]


def test_sums_are_divided_by_n_and_by_no_length() -> None:
    bias, x_NX = RelativeBias(20, timed=False), torch.randn(3, 16, 6)
    bands = Bands(segments_of(LENGTHS), 20)
    with torch.no_grad():
        one, ten = (bands.attend(*x_NX, heads=2, bias=bias, n=n) for n in (1, 10))
        torch.testing.assert_close(one / 10, ten)
        alone = Bands(segments_of([1]), 20).attend(*x_NX[:, 5:6], heads=2, bias=bias, n=10)
        torch.testing.assert_close(ten[5:6], alone)


def test_blocks_equal_all_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, lengths = stack(window=5, timed=True), [23, 4, 20]
    x_ND, times = torch.randn(47, 6), times_of(lengths)
    with torch.no_grad():
        whole = layers(x_ND, segments_of(lengths), times)
        monkeypatch.setattr("longrec.nn.pointwise_attention._BLOCK", 4)
        torch.testing.assert_close(layers(x_ND, segments_of(lengths), times), whole, atol=1e-5, rtol=1e-4)


def test_a_window_is_a_band_and_no_pass_over_the_last_events() -> None:
    layers, x_ND = stack(window=3), torch.randn(9, 6)
    with torch.no_grad():
        whole, last = layers(x_ND, segments_of([9]))[-1], layers(x_ND[-3:], segments_of([3]))[-1]
        assert (whole - last).abs().max() > 1e-3
        torch.testing.assert_close(whole, layers(x_ND[-5:], segments_of([5]))[-1], atol=1e-5, rtol=1e-4)


def test_buckets_of_time() -> None:
    seconds = torch.tensor([0, 1, 1.5, 2, 4.5, 60, 3600, 86_400, 31_536_000, 1e17], dtype=torch.float64)
    by_hand = [0, 0, 1, 2, 4, 13, 27, 37, 57, 128]
    assert bucket_times((2 * seconds).long()).tolist() == by_hand
    assert bucket_times(-(2 * seconds).long()).tolist() == by_hand


def test_times_are_sums_of_the_middles_of_buckets() -> None:
    """Ids 2, 3, 4 and 5 stand for 0, 1.5, 4.5 and 10.5 seconds. The newest event is followed by the request."""
    assert decode_gaps(torch.tensor([0, 1, 2, 3, 4, 5])).tolist() == [0, 0, 0, 3, 9, 21]
    times = read_times(torch.tensor([0, 3, 4, 0]), torch.tensor([9, 9, 5, 3]), segments_of([3, 0, 1]))
    assert (times.at - times.at[0])[:3].tolist() == [0, 3, 12]
    assert (times.following - times.at).tolist() == [3, 9, 21, 3]
    moved = times.set_following(torch.tensor([0, 0]), torch.tensor([2, 2]))
    assert (moved.following - moved.at).tolist() == [0, 9, 21, 3]


def ranker(**settings: Any) -> HSTU:
    torch.manual_seed(0)
    model = build({"name": "hstu", "width": 8, "heads": 2, "max_events": 6, "mlp": [8], **settings}, TIMED)
    assert isinstance(model, HSTU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.mark.parametrize("settings", [{}, {"window": 2}, {"time_bias": False}, {"layers": 1}], ids=str)
def test_shared_equals_paired_and_companions_change_nothing(settings: dict[str, Any]) -> None:
    model = ranker(**settings)
    with torch.no_grad():
        for candidates, events in ((5, 9), (3, 1), (2, 0)):
            batch = shared(candidates, events, fields=TIMED)
            torch.testing.assert_close(model(batch), model(repeated(batch, TIMED)), atol=1e-5, rtol=1e-4)
        rows = ragged(12, longest=9, fields=TIMED)
        alone = torch.cat([model(take(rows, [row])) for row in range(12)])
        torch.testing.assert_close(model(rows), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("window", [6, 2])
def test_a_candidate_is_the_newest_event(window: int) -> None:
    """A candidate after the layers is the last state of the history with the candidate appended to it."""
    layers, lengths = stack(window=window, timed=True), [4]
    x_UD, y_BD, times = torch.randn(4, 6), torch.randn(1, 6), times_of(lengths)
    now = times.following[-1:]
    both = EventTimes(torch.cat([times.at, now]), torch.cat([times.following, now]))
    with torch.no_grad():
        actual, _ = layers.read(y_BD, x_UD, segments_of(lengths), times)
        expected = layers(torch.cat([x_UD, y_BD]), segments_of([5]), both)[-1:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def retriever(**settings: Any) -> HSTUNextItem:
    torch.manual_seed(0)
    model = build({"name": "hstu_next_item", "embedding_dim": 6, "max_events": 9, **settings}, TIMED)
    assert isinstance(model, HSTUNextItem)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def test_a_target_is_predicted_as_of_its_own_time() -> None:
    """The state of a target in a sequence is the vector of a request at the time of the target."""
    model, batch = retriever(), ragged(1, fields=TIMED, lengths=[5])
    columns, gaps = batch.histories["seen"].columns, torch.tensor([4, 20], dtype=torch.int32)
    columns["time_since_previous"][3] = 4  # type: ignore[index]  # the target is the next event of its history
    targets = Targets(torch.tensor([2, 4]), torch.zeros(2).long(), torch.zeros(1).long(), 0, 1, gap=gaps)
    with torch.no_grad():
        states = model.encode_targets(replace(batch, targets=targets), model.embed_requests(batch))
        for number, (length, gap) in enumerate(((3, 4), (5, 20))):
            own: dict[str, Any] = {name: column[:length].clone() for name, column in columns.items()}  # type: ignore[index]
            own["time_gap"][-1] = gap
            one = replace(batch, histories={"seen": HistoryBatch(own, offsets([length]))})
            user = model.users(one)[0, 0]
            torch.testing.assert_close(F.normalize(states[number], dim=0), user, atol=1e-5, rtol=1e-4)
            own["time_gap"][-1] = gap + 9
            assert (
                model.users(replace(batch, histories={"seen": HistoryBatch(own, offsets([length]))}))[0, 0] - user
            ).abs().max() > 1e-4


def test_times_before_the_newest_event_come_from_the_events() -> None:
    """``time_gap`` of older events, which depends on when a history is read, changes no state."""
    model, batch = retriever(), ragged(1, fields=TIMED, lengths=[5])
    columns = dict(batch.histories["seen"].columns)
    gap = torch.as_tensor(columns["time_gap"]).clone()
    gap[:4] += 1
    other = replace(batch, histories={"seen": HistoryBatch({**columns, "time_gap": gap}, offsets([5]))})
    with torch.no_grad():
        assert torch.equal(model.states(batch), model.states(other))


def test_settings_that_do_not_fit() -> None:
    plain = Fields((ITEM,), {"seen": (ITEM, GAP)})
    assert not build({"name": "hstu_next_item"}, plain).timed  # type: ignore[attr-defined]
    for name in ("hstu", "hstu_next_item"):
        with pytest.raises(ConfigError, match="lacks the column time_since_previous"):
            build({"name": name, "time_bias": True}, plain)
        with pytest.raises(ConfigError, match="above max_events"):
            build({"name": name, "max_events": 3, "window": 4}, plain)
        with pytest.raises(ConfigError, match="no multiple of"):
            build({"name": name, "heads": 7}, plain)


def test_the_first_weights_of_the_next_item_form() -> None:
    model = build({"name": "hstu_next_item"}, TIMED)
    assert isinstance(model, HSTUNextItem)
    assert (model.width, model.config.negatives, model.config.temperature, model.config.cosine) == (50, 128, 0.05, True)
    assert np.isclose(float(model.stack.layers[0].inner.weight.detach().std()), 0.02, rtol=0.1)  # type: ignore[union-attr,operator,arg-type]


TIME_CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "hstu": (
        {"width": 8, "heads": 2, "mlp": [8]},
        ["exported_program_agrees", "a_step_on_another_device", "shared_batch_scores_as_ragged"],
    ),
    "hstu_next_item": (
        {"embedding_dim": 6, "negatives": 20},
        ["exported_scores_agree", "a_step_of_targets_on_another_device"],
    ),
}


@pytest.mark.parametrize("name", TIME_CASES)
def test_the_checks_of_models_hold_with_a_bias_of_time(name: str) -> None:
    """The fields of the conformance suite have no history with both columns of time in all of these checks."""
    settings, checks = TIME_CASES[name]
    check_case(Case(name, {**settings, "time_bias": True}, TIMED), only=checks)
