"""DFN: the tests that its sections of the notes list, by name, and the equations row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import build
from longrec.models.dfn import DFN, _Internal, _UnclickedAttention
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, ITEM, RATING, grouped, pick, ragged, repeated, shared, take, with_history
from longrec.testing.case import Case
from longrec.testing.expect import expect_close
from longrec.testing.programs import capture, flatten, program_agrees

THREE = Fields(FEW.features, {"clicked": (RATING, ITEM), "left": (RATING, ITEM), "disliked": (ITEM,)})
"""Clicks as wide as what was left unclicked, and dislikes that are narrower."""
ROLES = {"clicks": "clicked", "unclicks": "left", "dislikes": "disliked"}
SMALL: dict[str, Any] = {"embedding_dim": 6, "max_positions": 5, "attention": [7], "mlp": [16]}
SETTINGS: list[dict[str, Any]] = [{}, *DFN.variants]


def dfn(more: Mapping[str, Any] | None = None, fields: Fields = THREE, **settings: Any) -> DFN:
    model = Case("dfn", {**SMALL, **(more or {}), **settings}).lively(fields)
    assert isinstance(model, DFN)
    return model


def inner_of(model: DFN, role: str) -> _Internal:
    return cast(_Internal, model.inner[role])


def outer_of(model: DFN, role: str) -> _UnclickedAttention:
    return cast(_UnclickedAttention, model.outer[role])


def feedback(model: DFN, batch: Batch) -> dict[str, Tensor]:
    return model.feedback(batch, model.embeddings(batch))


def events_of(model: DFN, batch: Batch, role: str, row: int) -> Tensor:
    """The vectors of the events of one row."""
    start, stop = batch.histories[ROLES[role]].offsets[row : row + 2].tolist()
    columns = model.embeddings(batch).histories[ROLES[role]]
    return torch.cat([columns[name][start:stop] for name in ("item", "rating") if name in columns], 1)


def internal(inner: _Internal, q: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
    """mean(Transformer([e_a; s_1; ...; s_T])) of one row, and what the candidate pays the events."""
    y = q if inner.absent is None else torch.cat([q, inner.absent])
    back = torch.arange(len(events), -1, -1).clamp(max=len(inner.position_embedding) - 1)
    x, layer = torch.cat([events, y.unsqueeze(0)]) + inner.position_embedding[back], inner.layer
    w_q, w_k, w_v = layer.inner.weight.chunk(3)
    size, heads, weights = len(w_q) // layer.heads, [], []
    for own in (slice(head * size, (head + 1) * size) for head in range(layer.heads)):
        weights.append(((x @ w_q[own].t()) @ (x @ w_k[own].t()).t() / size**0.5).softmax(1))
        heads.append(weights[-1] @ (x @ w_v[own].t()))
    x = x + torch.cat(heads, 1) @ layer.outer.weight.t()
    h = (x @ layer.first.weight.t() + layer.first.bias).relu()
    x = x + h @ layer.second.weight.t() + layer.second.bias
    return x.mean(0), torch.stack(weights).mean(0)[-1, :-1]


def external(outer: _UnclickedAttention, f: Tensor, u: Tensor) -> Tensor:
    """sum_i softmax_i(MLP([q; x; q - x; q * x])) x_i of one row; q - x is folded into the weights of q and x."""
    q, unit = f if outer.project is None else outer.project.weight @ f, outer.unit
    first, scores = unit.first, []
    for x in u:
        h = first.weight_q @ q + first.weight_k @ x + first.weight_m @ (q * x)
        h = (h if first.bias is None else h + first.bias).relu()
        scores.append(unit.rest(h.unsqueeze(0)).squeeze())
    return torch.stack(scores).softmax(0) @ u


def as_written(model: DFN, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the attention of the candidate in each history."""
    embedded, logits = model.embeddings(batch), []
    weights: dict[str, list[Tensor]] = {name: [] for name in ROLES.values()}
    for row in range(batch.size):
        fields = [vectors[row] for vectors in embedded.features.values()]
        events_by_role = {role: events_of(model, batch, role, row) for role in ROLES}
        f = {}
        for role, events in events_by_role.items():
            f[role], w = internal(inner_of(model, role), embedded.features["item"][row], events)
            weights[ROLES[role]].append(w)
            f[role] = f[role] if len(events) else torch.zeros_like(f[role])
        u = events_by_role["unclicks"]
        for role in ("clicks", "dislikes"):
            both = len(events_by_role[role]) and len(u)
            f[f"by {role}"] = external(outer_of(model, role), f[role], u) if both else torch.zeros(u.shape[1])
        x = torch.cat([*fields, *f.values()])
        blocks = x.view(-1, len(fields[0]))
        pairs = sum(blocks[i] @ blocks[j] for i in range(len(blocks)) for j in range(i))
        linear = sum(w_BD[row].sum() for w_BD in model.first_order(batch).features.values())
        logits.append(model.bias[0] + linear + pairs + model.deep(x.unsqueeze(0))[0, 0])
    return torch.stack(logits), {name: torch.cat(pieces) for name, pieces in weights.items()}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_row_by_row(settings: dict[str, Any]) -> None:
    model, batch = dfn(settings), ragged(25, fields=THREE, longest=9)
    logits, weights = as_written(model, batch)
    torch.testing.assert_close(model(batch), logits, rtol=1e-4, atol=1e-4)
    for history, w_N in model.explain(batch).items():
        torch.testing.assert_close(w_N, weights[history], rtol=1e-4, atol=1e-5)


def test_the_score_of_the_external_attention_is_that_of_four_blocks() -> None:
    """[q; x; q - x; q * x] as they are."""
    outer = outer_of(dfn(), "clicks")
    q, u, first = torch.randn(1, 12), torch.randn(4, 12), outer.unit.first
    w_q, w_x = first.weight_q - 0.3, first.weight_k + 0.3  # any part of both may stand before the difference
    whole = torch.cat([w_q, w_x, torch.full_like(w_q, 0.3), first.weight_m], 1)
    q_4 = q.expand(4, -1)
    expected = torch.cat([q_4, u, q_4 - u, q_4 * u], 1) @ whole.t() + (0 if first.bias is None else first.bias)
    actual = first(q, u, Segments(torch.tensor([0, 4]), 1, 4))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_request_is_read_as_its_rows_are(settings: dict[str, Any]) -> None:
    model = dfn(settings)
    for candidates, events, apart in ((4, 9, 1), (3, 1, 0), (2, 0, 2), (2, 0, 0)):
        batch = shared(candidates, events, fields=THREE, apart=apart)
        whole = repeated(batch, THREE)
        expect_close(model(batch), model(whole))
        expect_close(model(batch), as_written(model, whole)[0])
        explanation = model.explain(whole)
        for number, (history, w_BT) in enumerate(model.explain(batch).items()):
            assert w_BT.shape == (candidates, events + apart * number)
            expect_close(w_BT.flatten(), explanation[history])
    together = grouped([2, 0, 2, 1], fields=THREE)
    for history, w_N in model.explain(together).items():
        expect_close(w_N, model.explain(together.ungroup())[history])


def test_a_graph_picks_from_what_was_left_unclicked() -> None:
    """At lengths other than those it was captured with."""
    bare = Fields((ITEM,), {"left": (ITEM,), "disliked": (ITEM,)})
    model = dfn(fields=bare, unclicks="left", dislikes="disliked")
    graph = capture(model).module()
    for candidates, events, apart in ((5, 7, 2), (3, 30, 1), (2, 2, 3)):
        batch = shared(candidates, events, seed=events, fields=bare, apart=apart)
        with torch.no_grad():
            expect_close(graph(*flatten(batch).values()), model(batch))


@pytest.mark.slow
def test_a_program_reads_all_three() -> None:
    """And histories that are empty."""
    program_agrees(Case("dfn", SMALL), THREE)


def literal(inner: _Internal, q: Tensor, events: Tensor, length: int) -> Tensor:
    """The authors' code: all positions attend to all, and all are summed up, what was padded too."""
    padded = torch.cat([events.new_zeros(length - len(events), events.shape[1]), events])
    return internal(inner, q, padded)[0] * (length + 1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_padding_length_does_not_change_the_output(settings: dict[str, Any]) -> None:
    """Padding is what a longer neighbor in the batch brings. The authors' code fails this."""
    model = dfn(settings)
    batch = ragged(3, fields=THREE, lengths=[4, 3, 60])
    together = model(batch)
    for rows in ([0], [1, 0]):
        torch.testing.assert_close(model(take(batch, rows)), together[rows], rtol=1e-4, atol=1e-4)
    inner, q = inner_of(model, "clicks"), model.embeddings(batch).features["item"][0]
    events = events_of(model, batch, "clicks", 0)
    torch.testing.assert_close(literal(inner, q, events, 4) / 5, feedback(model, batch)["clicks"][0])
    assert (literal(inner, q, events, 60) - literal(inner, q, events, 4)).abs().max() > 0.1


@pytest.mark.parametrize("role", ROLES)
def test_without_positions_the_order_of_a_history_is_not_seen(role: str) -> None:
    model, batch = dfn(), ragged(4, fields=THREE, lengths=[6] * 4)
    order = torch.cat([torch.randperm(6, generator=torch.Generator().manual_seed(row)) + 6 * row for row in range(4)])
    columns = batch.histories[ROLES[role]].columns
    turned = with_history(batch, ROLES[role], {name: pick(column, order) for name, column in columns.items()})
    assert (model(turned) - model(batch)).abs().max() > 1e-3
    with torch.no_grad():
        inner_of(model, role).position_embedding.copy_(
            inner_of(model, role).position_embedding[0].expand(5, -1).clone()
        )
    torch.testing.assert_close(model(turned), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("role", "other"), [("clicks", "dislikes"), ("dislikes", "clicks")])
def test_what_picks_depends_on_its_history_through_its_mean_only(
    role: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """f_uc on the clicks through f_c, f_ud on the dislikes through f_d; neither on the other's history."""
    model, batch = dfn(), ragged(5, fields=THREE, lengths=[6] * 5)
    changed = {}
    for name in (role, other):
        item = (cast(Tensor, batch.histories[ROLES[name]].columns["item"]) + 7) % 60
        changed[name] = with_history(batch, ROLES[name], {"item": item})
    name, before = f"unclicks by {role}", feedback(model, batch)
    assert (feedback(model, changed[role])[name] - before[name]).abs().max() > 1e-4
    torch.testing.assert_close(feedback(model, changed[other])[name], before[name])
    own, real = inner_of(model, role), _Internal.forward

    def held(inner: _Internal, *arguments: Any) -> tuple[Tensor, Tensor]:
        f_BK, w = real(inner, *arguments)
        return (before[role], w) if inner is own else (f_BK, w)

    monkeypatch.setattr(_Internal, "forward", held)
    torch.testing.assert_close(feedback(model, changed[role])[name], before[name])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_dislikes_are_zeros(settings: dict[str, Any]) -> None:
    """And no clicks; and with nothing left unclicked there is nothing to pick from."""
    model, batch = dfn(settings), ragged(4, fields=THREE, lengths=[5, 3, 4, 2])
    gone = {"clicks": "unclicks by clicks", "dislikes": "unclicks by dislikes"}
    both = set(gone.values())
    for role, zeros in (("clicks", {gone["clicks"]}), ("dislikes", {gone["dislikes"]}), ("unclicks", both)):
        history = batch.histories[ROLES[role]]
        none = HistoryBatch(
            {name: pick(x, []) for name, x in history.columns.items()}, torch.zeros_like(history.offsets)
        )
        without = replace(batch, histories={**batch.histories, ROLES[role]: none})
        actual, before = feedback(model, without), feedback(model, batch)
        for name, f_BK in actual.items():
            if name == role or name in zeros:
                assert not f_BK.any()
                assert before[name].any()
            else:
                torch.testing.assert_close(f_BK, before[name])
        assert model(without).isfinite().all()


def test_a_missing_role_acts_as_zeros() -> None:
    batch, whole = ragged(6, fields=THREE, lengths=[4, 0, 3, 2, 5, 1]), dfn()
    model = dfn(clicks="clicked", unclicks="left")
    assert list(feedback(model, batch)) == ["clicks", "unclicks", "unclicks by clicks"]
    assert list(feedback(whole, batch)) == [*ROLES, "unclicks by clicks", "unclicks by dislikes"]
    assert list(model.explain(batch)) == ["clicked", "left"]
    state = {name: value for name, value in whole.state_dict().items() if "dislikes" not in name}
    first = next(name for name in state if name.startswith("deep.") and state[name].ndim == 2)
    widths = [4 * 6, 12, 12, 6, 12, 12]
    kept = state[first].split(widths, 1)
    state[first] = torch.cat([kept[0], kept[1], kept[2], kept[4]], 1)
    model.load_state_dict(state)
    empty = HistoryBatch({"item": torch.zeros(0, dtype=torch.int32)}, torch.zeros(7, dtype=torch.int64))
    without = replace(batch, histories={**batch.histories, "disliked": empty})
    torch.testing.assert_close(model(batch), whole(without))


# ---- the losses ----------------------------------------------------------------------------------------------------

LABEL, DISLIKE = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0, float("nan"), float("nan")]
CLICKED, LEFT, DISLIKED = [0, 5], [3, 4], [1, 2]


def judged() -> Batch:
    batch = ragged(6, fields=THREE)
    return replace(batch, label=torch.tensor(LABEL), task_labels={"bought": torch.tensor(DISLIKE)})


@pytest.mark.parametrize(
    ("term", "rows"), [("click_weight", CLICKED), ("unclick_weight", LEFT), ("dislike_weight", DISLIKED)]
)
def test_the_rows_of_the_three_losses_are_disjoint(term: str, rows: list[int]) -> None:
    """Twice its weight adds a loss once more: that of its rows, and no other row is in it."""
    batch, weights = judged(), {"click_weight": 0.5, "unclick_weight": 2.0, "dislike_weight": 3.0}
    one = dfn({"dislike": "bought", **weights})
    two = dfn({"dislike": "bought", **weights, term: 2 * weights[term]})
    two.load_state_dict(one.state_dict())
    logit = one(batch)
    against = rows != CLICKED  # L_c asks for a click, L_u and L_d for none
    expected = F.softplus(logit if against else -logit)[rows].sum() * weights[term] / 6
    torch.testing.assert_close(two.loss(batch) - one.loss(batch), expected, rtol=1e-3, atol=1e-5)


def test_every_row_is_in_one_loss() -> None:
    assert sorted(CLICKED + LEFT + DISLIKED) == list(range(6))
    batch = judged()
    even = dfn(dislike="bought", dislike_weight=1.0)
    labeled = replace(batch, label=torch.tensor([float(row in CLICKED) for row in range(6)]))
    torch.testing.assert_close(even.loss(batch), bce_loss(even(batch), labeled))
    plain = dfn()
    assert plain.targets == ()
    torch.testing.assert_close(plain.loss(batch), bce_loss(plain(batch), batch))
    assert dfn(dislike="bought").config.dislike_weight == 10


def test_rows_that_do_not_count_are_in_no_loss() -> None:
    model, batch = dfn(dislike="bought"), judged()
    kept = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(model.loss(replace(batch, loss_mask=kept)), model.loss(take(batch, [0, 2, 3])))


def test_a_dislike_is_what_the_model_says_against_a_row() -> None:
    model, batch = dfn(dislike="bought"), judged()
    assert model.targets == ("bought",)
    torch.testing.assert_close(model.logits(batch), torch.stack([model(batch), -model(batch)], 1))
    assert dfn().logits(batch).shape == (6, 1)


def test_batches_without_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="carries no label"):
        dfn().loss(replace(judged(), label=None))
    with pytest.raises(ValueError, match="carries no target 'liked'"):
        dfn(dislike="liked").loss(judged())


# ---- who plays what --------------------------------------------------------------------------------------------------


def test_histories_take_their_roles_in_order_or_by_name() -> None:
    assert dfn().role == ROLES
    assert dfn(unclicks="clicked", dislikes="left").role == {"unclicks": "clicked", "dislikes": "left"}
    assert dfn(fields=FEW).role == {"clicks": "seen"}
    model = dfn(unclicks="disliked", dislikes="left")
    assert inner_of(model, "unclicks").absent is None
    assert inner_of(model, "dislikes").absent is not None
    assert outer_of(model, "dislikes").project is not None
    assert outer_of(dfn(), "clicks").project is None


def test_roles_that_do_not_fit_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"name": "dfn", "clicks": "lef", "unclicks": "left", "dislikes": "left"}, THREE)
    assert caught.value.faults == [
        "model.clicks: no history named 'lef'; there are clicked, left, disliked",
        "model.dislikes: the history 'left' has another role already",
    ]
    four = Fields(THREE.features, {**THREE.histories, "more": (ITEM,)})
    with pytest.raises(ConfigError, match="the schema has 4 histories; name those that dfn reads: clicks, unclicks"):
        build({"name": "dfn"}, four)
    assert list(dfn(fields=four, clicks="more").role.values()) == ["more"]
    with pytest.raises(ConfigError, match="dfn reads a history, and the schema has none"):
        build({"name": "dfn"}, Fields(FEW.features, {}))


def test_a_request_makes_queries_and_keys_of_its_events_once() -> None:
    model, rows = dfn(), []
    inner: Linear = inner_of(model, "unclicks").layer.inner
    inner.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model(shared(6, 50, fields=THREE))
    assert rows == [50, 6]


# ---- negative feedback -----------------------------------------------------------------------------------------------

TINY = {"name": "dfn", "heads": 1, "attention": [16], "mlp": [32], "init_std": 0.1}
FEW_PASSED: dict[str, Any] = {"users": 900, "passed": 2}
FIT: dict[str, Any] = {"epochs": 4, "lr": 1e-2}


def test_a_dislike_separates_the_unclicked_items(tmp_path: Path) -> None:
    """By all three losses."""
    dataset = generate_dataset("negative_feedback", **FEW_PASSED)
    assert solves(dataset, {**TINY, "dislike": "disliked"}, tmp_path, **FIT)


@pytest.mark.parametrize("model", [{**TINY, "clicks": "clicks"}, {"name": "pooling", "mlp": [32]}], ids=str)
def test_clicks_alone_and_sums_of_all_do_not(model: dict[str, Any], tmp_path: Path) -> None:
    assert any(model.items() >= excluded.items() for excluded in generate_dataset("negative_feedback", 2).must_not)
    dataset = generate_dataset("negative_feedback", **FEW_PASSED)
    actual, _ = aucs_of(dataset, run_in(dataset, model, tmp_path, **FIT))
    assert abs(actual - 0.5) < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("model", generate_dataset("negative_feedback", 2).must, ids=str)
def test_the_full_synthetic_dataset_is_solved(model: dict[str, Any], tmp_path: Path) -> None:
    assert solves(generate_dataset("negative_feedback"), model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", generate_dataset("negative_feedback", 2).must_not, ids=str)
def test_the_full_synthetic_dataset_is_not_solved(model: dict[str, Any], tmp_path: Path) -> None:
    assert not solves(generate_dataset("negative_feedback"), model, tmp_path)


def test_columns_that_a_history_alone_has_are_as_wide_as_the_others() -> None:
    extra = replace(RATING, name="extra", dim=4)
    fields = Fields(THREE.features, {name: (*columns, extra) for name, columns in THREE.histories.items()})
    with pytest.raises(ConfigError, match="dfn multiplies fields .*extra 4"):
        build({"name": "dfn", "clicks": "clicked"}, fields)
