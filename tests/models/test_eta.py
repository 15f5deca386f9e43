"""ETA: the equations from its weights, the choice of events in every layout, and what gets a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from long_interest import auc_of
from synthetic_runs import solves
from torch import Tensor

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core import artifact
from longrec.models.core.registry import build
from longrec.models.eta import ETA, _Path, choose_nearest, choose_nearest_shared
from longrec.nn.segments import Segments
from longrec.nn.simhash import SimHash, pack_bits
from longrec.nn.target_heads import TargetHeads
from longrec.testing.batches import (
    FEW,
    FIELDS,
    ITEM,
    RATING,
    grouped,
    offsets,
    pick,
    ragged,
    repeated,
    shared,
    with_feature,
    with_history,
)
from longrec.testing.case import Case
from longrec.testing.programs import program_agrees

SMALL: dict[str, Any] = {"width": 10, "heads": 2, "mlp": [16]}
SETTINGS: list[dict[str, Any]] = [
    {**SMALL, "selected": 3, "recent": 2, "bits": 12},
    {**SMALL, "selected": 2, "recent": 0, "bits": 70, "heads": 3},
    SMALL,
]


def eta(settings: dict[str, Any], fields: Fields = FIELDS) -> ETA:
    model = Case("eta", settings).lively(fields)
    assert isinstance(model, ETA)
    return model


def path_of(model: ETA, history: str) -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def attend(heads: TargetHeads, q_Q: Tensor, e_SK: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-head attention of one row: u, and the weights, mean over heads."""
    if not len(e_SK):
        return torch.zeros(heads.out.out_features), e_SK[:, 0]
    q, k, v = heads.query(q_Q.unsqueeze(0))[0], heads.key(e_SK), heads.value(e_SK)
    outputs, weights = [], []
    for head in range(heads.heads):
        own = slice(head * heads.size, (head + 1) * heads.size)
        weights.append((k[:, own] @ q[own] / heads.size**0.5).softmax(0))
        outputs.append(weights[-1] @ v[:, own])
    return heads.out.weight @ torch.cat(outputs), torch.stack(weights).mean(0)


def choose(distances: list[int], count: int) -> list[int]:
    """The nearest events, the newest of those at equal distance, in their order."""
    order = sorted(range(len(distances)), key=lambda at: (distances[at], -at))
    return sorted(order[:count])


def distances(path: _Path, q_Q: Tensor, e_TK: Tensor) -> list[int]:
    """Signs of all projections, compared bit by bit."""
    own = [bool(q_Q @ r > 0) for r in path.hash.directions.t()]
    return [sum(bool(e[: len(q_Q)] @ r > 0) != bit for bit, r in zip(own, path.hash.directions.t())) for e in e_TK]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_event_by_event(settings: dict[str, Any]) -> None:
    model, batch = eta(settings), ragged(9)
    embedded, logits = model.embeddings(batch), []
    weights = {name: torch.zeros(int(events.offsets[-1])) for name, events in batch.histories.items()}
    with torch.no_grad():
        for row in range(9):
            inputs = [vectors[row] for vectors in embedded.features.values()]
            for history, events in batch.histories.items():
                path, config = path_of(model, history), model.config
                q_BQ, e_NK, _ = model.queries(batch, embedded, history)
                start, stop = events.offsets[row : row + 2].tolist()
                e_TK = e_NK[start:stop]
                nearest = choose(distances(path, q_BQ[row], e_TK), config.selected)
                u, w = attend(path.long, q_BQ[row], e_TK[nearest])
                weights[history][[start + at for at in nearest]] = w
                inputs.append(u)
                if path.short is not None:
                    inputs.append(attend(path.short, q_BQ[row], e_TK[-config.recent :])[0])
            logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
        torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)
        for name, w_N in model.explain(batch).items():
            torch.testing.assert_close(w_N, weights[name], rtol=1e-4, atol=1e-5)


def test_one_event_by_hand() -> None:
    """Two directions, four events and two candidates."""
    item = Field("item", "id", 8, dim=2, side="item")
    model = build(
        {"name": "eta", "bits": 2, "selected": 1, "recent": 0, "width": 2, "heads": 1, "mlp": [1], "batch_norm": False},
        Fields((item,), {"seen": (item,)}),
    )
    assert isinstance(model, ETA)
    path = path_of(model, "seen")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        vectors = [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [-1.0, 5.0], [-1.0, -1.0], [2.0, 0.5], [-3.0, -2.0]]
        model.embeddings.table("item").copy_(torch.tensor(vectors))
        path.hash.directions.copy_(torch.eye(2))
        path.long.value.weight.copy_(torch.eye(2))
        path.long.out.weight.copy_(torch.eye(2))
        model.top.layers[0].linear.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 10.0]]))
        model.top.last.weight.fill_(1)
    ids = torch.tensor([2, 3, 4, 5, 2, 3, 4, 5], dtype=torch.int32)
    candidates = {"item": torch.tensor([6, 7], dtype=torch.int32)}
    batch = Batch.single(2, candidates, {"seen": HistoryBatch({"item": ids}, offsets([4, 4]))})
    # candidate (2, 0.5) is in the quadrant of events 2 and 3, of which 3 is newer: 3 + 10 * 4.
    # candidate (-3, -2) is in the quadrant of event 5: -1 - 10 < 0, which the ReLU makes 0.
    assert model(batch).tolist() == [43.0, 0.0]
    assert model.explain(batch)["seen"].tolist() == [0, 1, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("bits", [2, 12, 70])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_nearest_of_each_row_and_of_equal_ones_the_newest(bits: int, count: int) -> None:
    """With two bits most distances are ties."""
    torch.manual_seed(bits)
    for batch in (ragged(20, fields=FEW, longest=30), grouped([2, 0, 0, 1, 3, 3, 3], fields=FEW, longest=30)):
        segments = Segments.of(batch, "seen")
        bits_BM = torch.rand(segments.rows, bits) < 0.5
        bits_UM = torch.rand(segments.requests.positions, bits) < 0.5
        nearest = choose_nearest(bits_BM, pack_bits(bits_UM), segments, count)
        stored_N, flat = segments.flatten(torch.arange(len(bits_UM)))
        bounds, stored, position = flat.offsets.tolist(), [], []
        for row, (start, stop) in enumerate(zip(bounds, bounds[1:])):
            chosen = choose((bits_UM[stored_N[start:stop]] != bits_BM[row]).sum(1).tolist(), count)
            position += [start + at for at in chosen]
            stored += stored_N[start:stop][chosen].tolist()
        assert nearest.position_M is not None
        assert nearest.stored_M is not None
        assert (nearest.position_M.tolist(), nearest.stored_M.tolist()) == (position, stored)
        lengths = [min(stop - start, count) for start, stop in zip(bounds, bounds[1:])]
        assert nearest.segments.offsets.tolist() == offsets(lengths).tolist()


@pytest.mark.parametrize("bits", [2, 12, 70])
def test_the_nearest_of_a_shared_history_are_those_of_its_rows(bits: int) -> None:
    torch.manual_seed(bits)
    one = shared(6, 40, fields=FEW)
    segments, rows = Segments.of(one, "seen"), Segments.of(repeated(one, FEW), "seen")
    bits_BM, bits_TM = torch.rand(6, bits) < 0.5, torch.rand(40, bits) < 0.5
    lists = choose_nearest_shared(bits_BM, bits_TM, segments, 5)
    single = choose_nearest(bits_BM, pack_bits(bits_TM).repeat(6, 1), rows, 5)
    assert lists.position_M is not None
    assert single.position_M is not None
    assert sorted(lists.position_M.tolist()) == single.position_M.tolist()
    assert lists.size == 5


@pytest.mark.parametrize("selected", [4, 5])
def test_a_history_of_at_most_k_events_is_attended_to_as_a_whole(selected: int) -> None:
    """Its scores are those of full target attention, to the bit, also beside a longer history of another row."""
    settings = {**SMALL, "recent": 0}
    full, model = eta({**settings, "selected": 1_000}, FEW), eta({**settings, "selected": selected}, FEW)
    model.load_state_dict(full.state_dict())
    short = [4, 0, 3, 1, 4]
    with torch.no_grad():
        batch = ragged(5, fields=FEW, lengths=short)
        assert torch.equal(model(batch), full(batch))
        mixed = ragged(6, fields=FEW, lengths=[*short, 40])
        one, other = model(mixed), full(mixed)
        torch.testing.assert_close(one[:5], other[:5], rtol=1e-5, atol=1e-6)
        assert abs(one[5] - other[5]) > 1e-4
        one_user = shared(6, selected, fields=FEW)
        assert torch.equal(model(one_user), full(one_user))


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_a_saved_model_selects_the_same_events(settings: dict[str, Any], tmp_path: Path) -> None:
    model, batch = eta(settings), ragged(20)
    artifact.save(model, tmp_path)
    torch.manual_seed(99)
    again = artifact.load(tmp_path)
    assert isinstance(again, ETA)
    for name, weights in model.explain(batch).items():
        assert torch.equal(path_of(again, name).hash.directions, path_of(model, name).hash.directions)
        assert torch.equal(again.explain(batch)[name] > 0, weights > 0)


def test_the_same_batch_selects_the_same_events_in_training() -> None:
    model, batch = eta(SETTINGS[0]).train(), ragged(20)
    for name, weights in model.explain(batch).items():
        assert torch.equal(model.explain(batch)[name], weights)


def test_selected_events_get_a_gradient_and_others_and_the_directions_none() -> None:
    model = eta({**SETTINGS[0], "recent": 0}, FEW)
    path, batch = path_of(model, "seen"), ragged(9, fields=FEW, longest=20)
    q_BQ, k_NK, segments = model.queries(batch, model.embeddings(batch), "seen")
    k_NK = k_NK.detach().requires_grad_()
    path(q_BQ, k_NK, segments)[0].square().sum().backward()
    assert k_NK.grad is not None
    selected = model.explain(batch)["seen"] > 0
    assert 0 < selected.sum() < len(selected)
    assert torch.equal(k_NK.grad.abs().sum(1) > 0, selected)
    assert not path.hash.directions.requires_grad
    assert "directions" not in dict(path.hash.named_parameters())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_request_as_its_rows(settings: dict[str, Any]) -> None:
    model, one = eta(settings), shared(4, 9)
    together = model.explain(repeated(one))
    for name, w_BT in model.explain(one).items():
        assert w_BT.shape == (4, 9)
        torch.testing.assert_close(w_BT.flatten(), together[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(w_BT.sum(1), torch.ones(4))
        assert ((w_BT > 0).sum(1) == min(9, model.config.selected)).all()
    several = grouped([2, 0, 0, 1, 2])
    for name, w_N in model.explain(several).items():
        torch.testing.assert_close(w_N, model.explain(several.ungroup())[name], rtol=1e-4, atol=1e-5)


def test_events_are_hashed_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    model, forward = eta(SETTINGS[0], FEW), SimHash.forward
    monkeypatch.setattr(SimHash, "forward", lambda self, x: hashed.append(len(x)) or forward(self, x))
    model(shared(6, 9, fields=FEW))
    assert hashed == [6, 9]
    hashed.clear()
    batch = grouped([1, 0, 1, 1], fields=FEW, longest=30)
    model(batch)
    assert hashed == [4, int(batch.histories["seen"].offsets[-1])]
    hashed.clear()
    model(shared(6, 3, fields=FEW))  # no more events than are selected
    assert not hashed


def test_an_event_of_the_candidate_itself_is_selected() -> None:
    """However old it is, its distance is 0: the columns that no candidate has are not hashed."""
    model = eta({**SMALL, "selected": 1, "recent": 0, "bits": 200}, FEW)
    batch = ragged(9, fields=FEW, lengths=[30] * 9)
    ids = torch.arange(30, dtype=torch.int32).repeat(9) + 2
    batch = with_history(batch, "seen", {"item": ids})
    batch = with_feature(batch, "item", torch.arange(9, dtype=torch.int32) + 2)
    assert model.explain(batch)["seen"].view(9, 30).argmax(1).tolist() == list(range(9))


def test_more_events_at_the_old_end_move_nothing_unless_they_are_nearer() -> None:
    """Events at the distance of the last selected one do not replace it: the newest are selected."""
    model = eta({**SMALL, "selected": 3, "recent": 2}, FEW)
    batch = ragged(1, fields=FEW, lengths=[6])
    batch = with_history(batch, "seen", {"item": torch.full((6,), 5, dtype=torch.int32)})
    events = batch.histories["seen"]
    order = [0, 1, 2, 0, 1, *range(6)]
    columns = {name: pick(column, order) for name, column in events.columns.items()}
    longer = Batch.single(1, batch.features, {"seen": HistoryBatch(columns, offsets([11]))})
    with torch.no_grad():
        torch.testing.assert_close(model(longer), model(batch))
    assert model.explain(longer)["seen"].nonzero().squeeze(1).tolist() == [8, 9, 10]


def test_a_program_selects_as_the_model() -> None:
    """With ties, with fewer events than are selected, and without any."""
    program_agrees(Case("eta", {**SMALL, "selected": 40, "recent": 5, "bits": 4}), FEW)


def test_a_schema_that_eta_cannot_use_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="eta reads a history, and the schema has none"):
        build({"name": "eta"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError, match="eta needs a column that is a feature of the candidate too"):
        build({"name": "eta"}, Fields((user, ITEM), {"a": (RATING,)}))
    with pytest.raises(ConfigError, match="bits"):
        build({"name": "eta", "bits": 257}, FEW)


def test_it_finds_an_interest_in_earlier_clicks(tmp_path: Path) -> None:
    settings = {"name": "eta", "width": 16, "heads": 2, "mlp": [32], "embedding_dim": 8, "init_std": 0.1}
    dataset = generate_dataset("one_interest", users=500)
    assert solves(dataset, {**settings, "selected": 6, "recent": 4}, tmp_path, epochs=3, lr=1e-2)


def test_it_finds_in_a_long_history_what_the_last_50_events_do_not_contain() -> None:
    assert auc_of({"name": "eta", "width": 16}) > auc_of({"name": "din"}, last=50) + 0.15
