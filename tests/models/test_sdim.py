"""SDIM: buckets against loops over groups and events, their gradients, and the attention that they estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from long_interest import auc_of
from synthetic_runs import solves
from torch import Tensor

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.exporting.inputs import list_positions
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core import artifact
from longrec.models.core.registry import build
from longrec.models.sdim import SDIM, Buckets, _Path, normalize
from longrec.nn.chosen import Chosen
from longrec.nn.segments import Segments
from longrec.nn.simhash import SimHash
from longrec.testing.batches import FEW, FIELDS, ITEM, RATING, grouped, offsets, ragged, repeated, shared
from longrec.testing.case import Case
from longrec.testing.programs import program_agrees

SMALL: dict[str, Any] = {"width": 10, "heads": 2, "mlp": [16]}
SETTINGS: list[dict[str, Any]] = [
    {**SMALL, "groups": 5, "bits": 2, "recent": 2},
    {**SMALL, "groups": 3, "bits": 1, "recent": 50},
    SMALL,
]


def sdim(settings: dict[str, Any], fields: Fields = FIELDS) -> SDIM:
    model = Case("sdim", settings).lively(fields)
    assert isinstance(model, SDIM)
    return model


def path_of(model: SDIM, history: str) -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def pool(buckets: Buckets, q_Q: Tensor, e_TK: Tensor) -> tuple[Tensor, list[float]]:
    """The equations for one row, bit by bit: u, and the share of groups in which each event collides."""
    u, shares = torch.zeros(e_TK.shape[1]), [0.0] * len(e_TK)
    for group in range(buckets.groups):
        own = buckets.hash.directions[:, group * buckets.bits : (group + 1) * buckets.bits].t()
        total = torch.zeros(e_TK.shape[1])
        for at, e in enumerate(e_TK):
            if all(bool(e[: len(q_Q)] @ r > 0) == bool(q_Q @ r > 0) for r in own):
                total = total + e
                shares[at] += 1 / buckets.groups
        if total.norm() > 0:
            u = u + total / total.norm() / buckets.groups
    return u, shares


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_event_by_event(settings: dict[str, Any]) -> None:
    model, batch = sdim(settings), ragged(9)
    embedded, logits = model.embeddings(batch), []
    shares: dict[str, list[float]] = {name: [] for name in batch.histories}
    with torch.no_grad():
        for row in range(9):
            inputs = [vectors[row] for vectors in embedded.features.values()]
            for history, events in batch.histories.items():
                path = path_of(model, history)
                q_BQ, e_NK, _ = model.queries(batch, embedded, history)
                start, stop = events.offsets[row : row + 2].tolist()
                u, own = pool(path.long, q_BQ[row], e_NK[start:stop])
                newest = e_NK[start:stop][-model.config.recent :]
                alone = Segments.of_offsets(offsets([len(newest)]).numpy(), torch.device("cpu"))
                inputs += [u, path.short(q_BQ[row : row + 1], newest, Chosen(alone))[0]]
                shares[history] += own
            logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
        torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)
        for name, w_N in model.explain(batch).items():
            torch.testing.assert_close(w_N, torch.tensor(shares[name]))


def rows_of(segments: Segments, k_UK: Tensor) -> list[Tensor]:
    """The events of each row."""
    if segments.shared:
        return [k_UK] * segments.rows
    k_NK, flat = segments.flatten(k_UK)
    bounds = flat.offsets.tolist()
    return [k_NK[start:stop] for start, stop in zip(bounds, bounds[1:])]


BATCHES = {
    "single": ragged(9, fields=FEW, longest=12),
    "grouped": grouped([2, 0, 0, 1, 3, 3, 3], fields=FEW, longest=12),
    "shared": shared(5, 12, fields=FEW),
    "empty": ragged(3, lengths=[0] * 3, fields=FEW),
    "empty shared": shared(3, 0, fields=FEW),
}


@pytest.mark.parametrize(("groups", "bits"), [(1, 1), (6, 3), (2, 8)])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_sums_and_gradients_are_those_of_loops_in_every_layout(batch: Batch, groups: int, bits: int) -> None:
    """Tables of buckets, pairs and weighted sums are ways to compute the same."""
    torch.manual_seed(0)
    segments, buckets = Segments.of(batch, "seen"), Buckets(4, groups, bits)
    k_UK = torch.randn(segments.requests.positions, 6, requires_grad=True)
    q_BQ, weight_BK = torch.randn(segments.rows, 4, requires_grad=True), torch.randn(segments.rows, 6)
    rows = rows_of(segments, k_UK)
    expected = torch.stack([pool(buckets, q, e_TK)[0] for q, e_TK in zip(q_BQ, rows, strict=True)])
    actual = buckets(q_BQ, k_UK, segments)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    if not len(k_UK):
        assert (actual == 0).all()
        return
    (wanted,) = torch.autograd.grad((expected * weight_BK).sum(), k_UK)
    by_k, by_q = torch.autograd.grad((actual * weight_BK).sum(), [k_UK, q_BQ], allow_unused=True)
    torch.testing.assert_close(by_k, wanted, rtol=1e-4, atol=1e-5)
    assert by_q is None  # the candidate selects buckets, which has no gradient
    assert not buckets.hash.directions.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(buckets(q_BQ, k_UK, segments), actual)


def test_a_table_holds_the_sum_of_each_bucket() -> None:
    buckets, k_TK = Buckets(4, 3, 2), torch.randn(20, 6)
    code_TG = buckets.codes(k_TK[:, :4])
    table = buckets.sum_buckets(k_TK).view(4, 3, 6).transpose(0, 1)
    for group in range(3):
        for code in range(4):
            torch.testing.assert_close(table[group, code], k_TK[code_TG[:, group] == code].sum(0))
    torch.testing.assert_close(table.sum(1), k_TK.sum(0).expand(3, 6))


@pytest.mark.parametrize("batch", [BATCHES["single"], BATCHES["shared"]], ids=["single", "shared"])
def test_without_bits_it_is_the_normalized_sum_of_all(batch: Batch) -> None:
    segments, buckets = Segments.of(batch, "seen"), Buckets(4, 7, 0)
    k_UK, q_BQ = torch.randn(segments.requests.positions, 6), torch.randn(segments.rows, 4)
    total_BK = torch.stack([e_TK.sum(0) for e_TK in rows_of(segments, k_UK)])
    torch.testing.assert_close(buckets(q_BQ, k_UK, segments), torch.nn.functional.normalize(total_BK))


def test_a_history_of_the_candidate_alone_is_its_direction() -> None:
    buckets, q_BQ = Buckets(4, 16, 3), torch.randn(5, 4)
    for times in (1, 3):
        segments = Segments.of_offsets(offsets([times] * 5).numpy(), torch.device("cpu"))
        k_NK = q_BQ.repeat_interleave(times, 0)
        torch.testing.assert_close(buckets(q_BQ, k_NK, segments), torch.nn.functional.normalize(q_BQ))


def test_order_and_opposite_events_do_not_matter() -> None:
    """An event opposite to the candidate shares no bit with it, so it is in none of its buckets, as if it were none."""
    torch.manual_seed(0)
    buckets, q_1Q, k_TK = Buckets(6, 16, 3), torch.randn(1, 6), torch.randn(10, 6)
    for width in (3, 1_000):
        more = torch.cat([-q_1Q.expand(width, 6), k_TK[torch.randperm(10)]])
        for is_shared in (False, True):
            one, other = (Segments(offsets([len(k)]), 1, len(k), shared=is_shared) for k in (k_TK, more))
            torch.testing.assert_close(buckets(q_1Q, more, other), buckets(q_1Q, k_TK, one))


def test_the_share_of_collisions_estimates_an_attention() -> None:
    """Of 20,000 groups, the share in which an event collides is (1 - angle / pi)^tau within 4 standard deviations."""
    torch.manual_seed(3)
    groups = 20_000
    q_1Q, k_TK = torch.randn(1, 5), torch.randn(12, 5)
    k_TK[0], k_TK[1] = 2 * q_1Q[0], q_1Q[0] + 0.3 * k_TK[1]
    segments = Segments(torch.arange(2), 1, 12, shared=True)
    angle_T = torch.nn.functional.cosine_similarity(q_1Q, k_TK).clamp(-1, 1).arccos()
    for bits in (1, 3):
        share_T = Buckets(5, groups, bits).match(q_1Q, k_TK, segments)
        expected_T = (1 - angle_T / torch.pi) ** bits
        deviation_T = (expected_T * (1 - expected_T) / groups).sqrt()
        assert ((share_T - expected_T).abs() <= 4 * deviation_T + 1e-3 * (expected_T > 0.999)).all()
        assert share_T[0] == 1


def test_a_sum_of_zero_has_no_direction_and_a_finite_gradient() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [1e15, 0.0]], requires_grad=True)
    y = normalize(x)
    torch.testing.assert_close(y, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[1:3] == 0).all()


def test_a_saved_model_has_the_same_buckets(tmp_path: Path) -> None:
    model, batch = sdim(SETTINGS[0]), ragged(20)
    artifact.save(model, tmp_path)
    torch.manual_seed(99)
    again = artifact.load(tmp_path)
    assert isinstance(again, SDIM)
    for name, shares in model.explain(batch).items():
        assert torch.equal(again.explain(batch)[name], shares)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_request_as_its_rows(settings: dict[str, Any]) -> None:
    model, one = sdim(settings), shared(4, 9)
    together = model.explain(repeated(one))
    for name, w_BT in model.explain(one).items():
        assert w_BT.shape == (4, 9)
        torch.testing.assert_close(w_BT.flatten(), together[name])
    several = grouped([2, 0, 0, 1, 2])
    for name, w_N in model.explain(several).items():
        torch.testing.assert_close(w_N, model.explain(several.ungroup())[name])


def test_buckets_are_summed_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    model, forward, of_columns = sdim(SETTINGS[0], FEW), SimHash.forward, SimHash.of_columns
    monkeypatch.setattr(SimHash, "forward", lambda self, x: hashed.append(len(x)) or forward(self, x))
    monkeypatch.setattr(SimHash, "of_columns", lambda self, x: hashed.append(len(x)) or of_columns(self, x))
    model(shared(6, 9, fields=FEW))
    assert hashed == [9, 6]
    hashed.clear()
    batch = grouped([1, 0, 1, 1], fields=FEW)
    model(batch)
    assert hashed == [4, int(batch.histories["seen"].offsets[-1])]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_state_is_the_history_however_its_events_are_cut(settings: dict[str, Any]) -> None:
    """Two users at once, one of whom has fewer events, and a request with the events after their states."""
    model, lengths = sdim(settings, FEW), [9, 4]
    every = [shared(3, length, seed, FEW) for seed, length in enumerate(lengths)]

    def cut(user: int, first: int, stop: int) -> dict[str, Tensor]:
        columns = every[user].histories["seen"].columns
        return {name: cast(Tensor, column)[first:stop] for name, column in columns.items()}

    with torch.no_grad():
        for steps in ([(9, 4)], [(0, 0)], [(1, 0), (1, 1), (4, 1)], [(2, 2), (0, 1), (5, 0)]):
            states_BW, done = model.start_state("seen").expand(2, -1), [0, 0]
            for step in steps:
                taken = [cut(user, done[user], done[user] + count) for user, count in enumerate(step)]
                events = {name: torch.cat([own[name] for own in taken]) for name in taken[0]}
                if any(step):
                    positions = torch.from_numpy(list_positions(step))
                    states_BW = model.update_states("seen", states_BW, HistoryBatch(events, torch.arange(2)), positions)
                done = [before + count for before, count in zip(done, step)]
            for user, batch in enumerate(every):
                later = cut(user, done[user], lengths[user])
                start_1W, count = states_BW[user : user + 1], lengths[user] - done[user]
                own = HistoryBatch({**later}, torch.arange(2) * count, start=start_1W)
                actual = model(replace(batch, histories={"seen": own}))
                torch.testing.assert_close(actual, model(batch), rtol=1e-5, atol=1e-5)
                if done[user]:
                    missing = HistoryBatch({**later}, torch.arange(2) * count)
                    assert (model(replace(batch, histories={"seen": missing})) - actual).abs().max() > 1e-4


def test_one_event_by_hand() -> None:
    """One group of two directions, the quadrants; three events and two candidates."""
    item = Field("item", "id", 7, dim=2, side="item")
    settings = {"name": "sdim", "groups": 1, "bits": 2, "mlp": [1], "batch_norm": False, "width": 1, "heads": 1}
    model = build(settings, Fields((item,), {"seen": (item,)}))
    assert isinstance(model, SDIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        vectors = [[0.0, 0.0], [0.0, 0.0], [1.0, 3.0], [2.0, 1.0], [-1.0, 5.0], [9.0, 0.1], [-1.0, -1.0]]
        model.embeddings.table("item").copy_(torch.tensor(vectors))
        path_of(model, "seen").long.hash.directions.copy_(torch.eye(2))
        model.top.layers[0].linear.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 10.0, 0.0]]))
        model.top.last.weight.fill_(1)
    ids = torch.tensor([2, 3, 4, 2, 3, 4], dtype=torch.int32)
    candidates = {"item": torch.tensor([5, 6], dtype=torch.int32)}
    batch = Batch.single(2, candidates, {"seen": HistoryBatch({"item": ids}, offsets([3, 3]))})
    # candidate (9, 0.1) is in the quadrant of (1, 3) and (2, 1), whose sum (3, 4) has length 5: 0.6 + 10 * 0.8.
    # candidate (-1, -1) is in a quadrant without events: 0.
    torch.testing.assert_close(model(batch), torch.tensor([8.6, 0.0]))
    assert model.explain(batch)["seen"].tolist() == [1, 1, 0, 0, 0, 0]


def test_a_program_sums_as_the_model() -> None:
    program_agrees(Case("sdim", {**SMALL, "groups": 6, "bits": 4, "recent": 5}), FEW)


def test_what_it_cannot_use_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="sdim reads a history, and the schema has none"):
        build({"name": "sdim"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError, match="sdim needs a column that is a feature of the candidate too"):
        build({"name": "sdim"}, Fields((user, ITEM), {"a": (RATING,)}))
    for settings in ({"bits": 0}, {"bits": 9}, {"recent": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            build({"name": "sdim", **settings}, FEW)


def test_it_finds_an_interest_in_earlier_clicks(tmp_path: Path) -> None:
    """With one event in the short-term branch, so that the buckets find it."""
    settings = {
        "name": "sdim",
        "groups": 32,
        "recent": 1,
        "width": 16,
        "mlp": [32],
        "embedding_dim": 8,
        "init_std": 0.1,
    }
    dataset = generate_dataset("one_interest", users=1_000)
    assert solves(dataset, settings, tmp_path, epochs=4, lr=1e-2, embedding_lr=3e-2)


def test_it_finds_in_a_long_history_what_the_last_50_events_do_not_contain() -> None:
    assert auc_of({"name": "sdim", "width": 16}) > auc_of({"name": "din"}, last=50) + 0.15
