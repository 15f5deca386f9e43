"""SIM: both searches, the attention to what they select, the auxiliary loss."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from long_histories import RECENT, train_on_old_events
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.sim import SIM, _Path
from longrec.nn.selection import select_all
from longrec.testing.batches import (
    FEW,
    GAP,
    ITEM,
    RATING,
    TOKENS,
    grouped,
    offsets,
    pick,
    ragged,
    repeated,
    shared,
    take,
    with_feature,
    with_history,
)
from longrec.testing.case import Case
from longrec.testing.expect import expect_close
from longrec.testing.programs import capture, flatten

KIND = Field("kind", "id", 6, side="item")
KINDS = Fields(
    (Field("user", "id", 40, side="user"), KIND, ITEM), {"seen": (RATING, KIND, ITEM, GAP), "liked": (KIND, ITEM)}
)
SMALL: dict[str, Any] = {"heads": 2, "head_width": 3, "search_width": 3, "hidden": 4, "aux": [4], "mlp": [8]}
SOFT, HARD = {**SMALL, "select": 3}, {**SMALL, "search": "hard", "select": 3}
SETTINGS = [
    SOFT,
    HARD,
    {**SOFT, "short": 2, "search_recent": False},
    {**HARD, "key": "item", "short": 0},
    {**HARD, "short": 2, "search_recent": False},
    {**SOFT, "short": 0},
]


def sim(settings: dict[str, Any] | None = None, fields: Fields = KINDS) -> SIM:
    model = Case("sim", settings or SOFT).lively(fields)
    assert isinstance(model, SIM)
    return model


def path_of(model: SIM, history: str = "seen") -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def rows_of(batch: Batch, history: str) -> list[range]:
    """The positions of each row of a ragged batch."""
    return [range(start, stop) for start, stop in pairwise(batch.histories[history].offsets.tolist())]


def ids_of(batch: Batch, history: str, column: str) -> list[int]:
    return cast(Tensor, batch.histories[history].columns[column]).tolist()


@torch.no_grad()
def searched(model: SIM, batch: Batch, history: str, row: int) -> list[int]:
    """The positions that the search selects, by a loop over the events."""
    config, positions = model.config, list(rows_of(batch, history)[row])
    if not config.search_recent:
        positions = positions[: -config.short]
    if config.search == "hard":
        column = config.key or "kind"
        wanted, ids = int(batch.features[column][row]), ids_of(batch, history, column)
        return [at for at in positions if ids[at] == wanted >= 2][-config.select :]
    path, embedded = path_of(model, history), model.embed(batch)
    q_BQ, e_UK, _ = model.queries(batch, embedded, history)
    assert path.search_query is not None
    assert path.search_key is not None
    q = path.search_query.weight @ q_BQ[row]
    r = {at: float(q @ path.search_key.weight @ e_UK[at, : path.searched]) for at in positions}
    return sorted(sorted(positions, key=lambda at: (-r[at], -at))[: config.select])


def gru(layer: Any, x: Tensor, h: Tensor, a: Tensor | float = 1.0) -> Tensor:
    """One step of a recurrence, whose update is scaled by a."""
    xs, hs = (layer.weight @ x + layer.bias).chunk(3), (layer.recurrent @ h).chunk(3)
    u, r = torch.sigmoid(xs[0] + hs[0]), torch.sigmoid(xs[1] + hs[1])
    return h + a * u * (torch.tanh(xs[2] + r * hs[2]) - h)


def as_written(model: SIM, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Logits, the weights of all events, and the auxiliary logits ``[B, histories]``, row by row and event by event."""
    embedded, logits, aux = model.embed(batch), [], []
    weights = {name: torch.zeros(int(events.offsets[-1])) for name, events in batch.histories.items()}
    for row in range(batch.size):
        inputs, own = [vectors[row] for vectors in embedded.features.values()], []
        for history in batch.histories:
            path, (q_BQ, e_UK, _) = path_of(model, history), model.queries(batch, embedded, history)
            q, chosen = q_BQ[row], searched(model, batch, history, row)
            for head in range(path.heads):
                at = slice(head * path.head_width, (head + 1) * path.head_width)
                query = (path.query.weight @ q + path.query.bias)[at]
                s = [query @ (path.key.weight @ e_UK[j])[at] * path.head_width**-0.5 for j in chosen]
                w = torch.stack(s).softmax(0) if s else torch.zeros(0)
                inputs.append(w @ e_UK[chosen])
                weights[history][chosen] += w / path.heads
            positions = list(rows_of(batch, history)[row])
            if path.short is not None:
                newest, h, states = positions[-model.config.short :], torch.zeros(model.config.hidden), []
                for j in newest:
                    h = gru(path.short.interest, e_UK[j], h)
                    states.append(h)
                v, h = path.short.query.weight @ q + path.short.query.bias, torch.zeros(model.config.hidden)
                a = torch.stack([v @ state for state in states]).softmax(0) if states else torch.zeros(0)
                for state, share in zip(states, a, strict=True):
                    h = gru(path.short.evolution, state, h, share)
                inputs.append(h)
            if path.aux is not None and path.search_query is not None and path.search_key is not None:
                u = torch.zeros(path.searched)
                for j in positions if model.config.search_recent else positions[: -model.config.short]:
                    e = e_UK[j, : path.searched]
                    u = u + (path.search_query.weight @ q) @ (path.search_key.weight @ e) * e
                own.append(path.aux(torch.cat([u, q]).unsqueeze(0))[0, 0])
        logits.append(model.top(torch.cat(inputs).unsqueeze(0))[0, 0])
        aux.append(torch.stack(own) if own else torch.zeros(0))
    return torch.stack(logits), weights, torch.stack(aux)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_event_by_event(settings: dict[str, Any]) -> None:
    model, batch = sim(settings), ragged(12, fields=KINDS)
    logits, weights, aux_BH = as_written(model, batch)
    expect_close(model(batch), logits, atol=1e-4)
    for history, w_N in model.explain(batch).items():
        expect_close(w_N, weights[history])
    embedded = model.embed(batch)
    model.interact(batch, embedded)
    if settings.get("search") == "hard":
        assert model.aux_loss(batch, embedded) == 0
        return
    label = cast(Tensor, batch.label).unsqueeze(1).expand_as(aux_BH)
    expected = nn.functional.binary_cross_entropy_with_logits(aux_BH, label)
    expect_close(cast(Tensor, model.aux_loss(batch, embedded)), expected, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_layout_is_searched_as_single_rows_are(settings: dict[str, Any]) -> None:
    model = sim(settings)
    for candidates, events in ((6, 9), (3, 4), (4, 1), (2, 0)):
        batch = shared(candidates, events, fields=KINDS)
        expect_close(model(batch), model(repeated(batch, KINDS)))
        explanation = model.explain(repeated(batch, KINDS))
        for history, w_BT in model.explain(batch).items():
            assert w_BT.shape == (candidates, events)
            expect_close(w_BT.flatten(), explanation[history])
    several = grouped([2, 0, 0, 1, 3, 3, 2], fields=KINDS)
    expect_close(model(several), model(several.ungroup()))
    for history, w_N in model.explain(several).items():
        expect_close(w_N, model.explain(several.ungroup())[history])


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_as_many_events_as_the_history_has_equal_no_search(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(a) Of a hard search, where all events have the key of the candidate."""
    model, batch = sim({**SMALL, "search": search, "select": 7}), ragged(9, fields=KINDS)
    for history, events in batch.histories.items():
        batch = with_history(batch, history, {"kind": torch.full((int(events.offsets[-1]),), 3, dtype=torch.int32)})
    batch = with_feature(batch, "kind", torch.full((9,), 3, dtype=torch.int32))
    assert max(len(row) for row in rows_of(batch, "seen")) == 7
    expected, explained = model(batch), model.explain(batch)
    monkeypatch.setattr(_Path, "choose", lambda path, q_BQ, e_UK, segments, keys: select_all(segments))
    assert torch.equal(model(batch), expected)
    for history, w_N in model.explain(batch).items():
        assert torch.equal(w_N, explained[history])


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_the_search_equals_a_filter(search: str) -> None:
    """(b) Of events without any key in common as of more than k."""
    model = sim({**SMALL, "search": search, "select": 2})
    batch = ragged(60, fields=KINDS)
    explanation = model.explain(batch)
    sizes = set()
    for history in batch.histories:
        for row, positions in enumerate(rows_of(batch, history)):
            chosen = [at for at in positions if explanation[history][at] > 0]
            assert chosen == searched(model, batch, history, row)
            sizes.add(len(chosen))
    assert sizes == {0, 1, 2}


def test_events_of_other_categories_change_nothing() -> None:
    """(c) Before, between and after the others, and longer rows beside them."""
    model = sim({**HARD, "short": 0})
    batch = with_feature(ragged(3, fields=KINDS, lengths=[4, 4, 9]), "kind", torch.tensor([2, 3, 4]).int())
    batch = with_history(batch, "seen", {"kind": torch.tensor([2, 2, 3, 2] + [3, 4, 2, 3] + [4] * 9).int()})
    events = batch.histories["seen"]
    own = [0, 1, 3, 4, 7, *range(8, 17)]
    filtered = HistoryBatch({name: pick(column, own) for name, column in events.columns.items()}, offsets([3, 2, 9]))
    alone = replace(batch, histories={**batch.histories, "seen": filtered})
    expect_close(model(alone), model(batch))
    expect_close(model(take(batch, [0, 1])), model(batch)[:2])


@pytest.mark.parametrize("settings", [{**HARD, "short": 0}, {**SOFT, "short": 0, "select": 7}], ids=str)
def test_the_order_of_selected_events_is_irrelevant(settings: dict[str, Any]) -> None:
    """(d) Time is one of the columns, and goes with its event."""
    model, batch = sim({**settings, "select": 7}), ragged(9, fields=KINDS)
    assert not model.order_matters
    turned = batch
    for history, events in batch.histories.items():
        order = [at for row in rows_of(batch, history) for at in reversed(row)]
        turned = with_history(turned, history, {name: pick(column, order) for name, column in events.columns.items()})
    expect_close(model(turned), model(batch))


def test_an_index_from_category_to_its_newest_events_is_equivalent() -> None:
    """(e) What a server would append to, event by event, instead of searching."""
    model, batch = sim(HARD), ragged(1, fields=KINDS, lengths=[60])
    index: defaultdict[int, deque[int]] = defaultdict(lambda: deque(maxlen=3))
    for at, kind in enumerate(ids_of(batch, "seen", "kind")):
        index[kind].append(at)
    for kind in range(2, 6):
        w_N = model.explain(with_feature(batch, "kind", torch.tensor([kind]).int()))["seen"]
        assert w_N.nonzero().squeeze(1).tolist() == list(index[kind])
        assert len(index[kind]) == 3


def long_term(model: SIM, batch: Batch, history: str = "seen") -> Tensor:
    """U_lt of every row."""
    embedded, path = model.embed(batch), path_of(model, history)
    u_BX: Tensor = path(*model.queries(batch, embedded, history), model._keys(batch).get(history))
    return u_BX[:, : path.heads * model.queries.key_widths[history]]


@pytest.mark.parametrize("settings", [SOFT, HARD], ids=["soft", "hard"])
def test_the_candidate_is_no_event_of_the_history(settings: dict[str, Any]) -> None:
    """(f) Without a match, or without an event, the pooled vector is zero, not the candidate."""
    model, batch = sim(settings), ragged(3, fields=KINDS, lengths=[0, 4, 4])
    batch = with_feature(batch, "kind", torch.tensor([2, 2, 2]).int())
    batch = with_history(batch, "seen", {"kind": torch.tensor([3, 4, 0, 1] + [3, 2, 0, 1]).int()})
    empty = [not row.any() for row in long_term(model, batch)]
    assert empty == ([True, False, False] if settings is SOFT else [True, True, False])


@pytest.mark.parametrize("reserved", [0, 1])
def test_a_missing_or_unseen_category_selects_nothing(reserved: int) -> None:
    model, batch = sim(HARD), ragged(2, fields=KINDS, lengths=[4, 4])
    ids = torch.full((8,), reserved, dtype=torch.int32)
    batch = with_feature(with_history(batch, "seen", {"kind": ids}), "kind", ids[:2])
    assert not long_term(model, batch).any()
    request = shared(2, 4, fields=KINDS)
    request = with_feature(with_history(request, "seen", {"kind": ids[:4]}), "kind", ids[:2])
    assert not long_term(model, request).any()


def test_of_events_of_equal_scores_the_newest_are_selected() -> None:
    """One item bought five times, with other ratings: its scores in the search are equal, to the bit."""
    model = sim({**SOFT, "select": 2})
    for batch in (ragged(2, fields=KINDS, lengths=[5, 6]), shared(2, 5, fields=KINDS)):
        count = len(ids_of(batch, "seen", "item"))
        same = {name: torch.full((count,), 3, dtype=torch.int32) for name in ("item", "kind")}
        w = model.explain(with_history(batch, "seen", same))["seen"].flatten()
        ends = [5, 11] if batch.layout.kind == "single" else [5, 10]
        assert w.nonzero().squeeze(1).tolist() == [at for end in ends for at in (end - 2, end - 1)]


def test_the_search_learns_from_the_auxiliary_loss_alone() -> None:
    """The choice has no gradient, and the attention none in the projections of the search."""
    model, batch = sim(SOFT).train(), ragged(20, fields=KINDS)
    of_search = {name for name, _ in model.named_parameters() if ".search_" in name or ".aux." in name}
    assert len(of_search) == 2 * (2 + 4)
    embedded = model.embed(batch)
    model.label_loss(model.head(model.interact(batch, embedded)), batch).backward()  # type: ignore[no-untyped-call]
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == of_search
    model.zero_grad()
    embedded = model.embed(batch)
    model.interact(batch, embedded)
    cast(Tensor, model.aux_loss(batch, embedded)).backward()  # type: ignore[no-untyped-call]
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    learned = {name for name, grad in grads.items() if grad.to_dense().any()}
    assert learned == of_search | {"embeddings.table_item", "embeddings.table_kind"}


@pytest.mark.parametrize("settings", [SOFT, HARD], ids=["soft", "hard"])
def test_only_selected_events_are_projected(settings: dict[str, Any]) -> None:
    """Of rows with a history each; of a history that several candidates read, the candidates instead."""
    model, seen = sim({**settings, "short": 0}), []
    path_of(model).key.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    batch = ragged(20, fields=KINDS)
    model(batch)
    model(shared(6, 20, fields=KINDS))
    assert seen == [sum(len(searched(model, batch, "seen", row)) for row in range(20))]
    assert seen[0] < int(batch.histories["seen"].offsets[-1])


@pytest.mark.parametrize("settings", [{**SOFT, "short": 2, "search_recent": False}, HARD], ids=["soft", "hard"])
def test_a_program_selects_as_the_model(settings: dict[str, Any]) -> None:
    """Of histories longer and shorter than what is selected."""
    fields = Fields((KIND, ITEM), {"seen": (KIND, ITEM, GAP)})
    model = sim(settings, fields)
    with torch.no_grad():
        graph = capture(model).module()
        for candidates, events in ((5, 7), (3, 40), (2, 5), (4, 4)):
            batch = shared(candidates, events, fields=fields, seed=events)
            expect_close(graph(*flatten(batch).values()), model(batch))


def test_a_history_without_the_key_is_read_up_to_its_newest_events() -> None:
    model, batch = sim(HARD, TOKENS), ragged(9, fields=TOKENS)
    assert model.columns == {"tokens": None}
    w_N = model.explain(batch)["tokens"]
    assert w_N.nonzero().squeeze(1).tolist() == [at for row in rows_of(batch, "tokens") for at in list(row)[-3:]]


def test_the_column_of_the_hard_search() -> None:
    assert sim(HARD).columns == {"seen": "kind", "liked": "kind"}
    assert sim({**HARD, "key": "item"}).columns == {"seen": "item", "liked": "item"}
    assert sim(HARD, FEW).columns == {"seen": "item"}
    assert sim(SOFT).columns == {"seen": None, "liked": None}


def test_settings_that_do_not_fit_are_refused() -> None:
    """The candidate lacks a rating; no history has the brand; a soft search has no key."""
    brand = Field("brand", "id", 9, side="item")
    fields = Fields((*KINDS.features, brand), KINDS.histories)
    expected = "model.key: must be an id column of the candidate and of a history (item, kind), got "
    hard = {"name": "sim", "search": "hard"}
    with pytest.raises(ConfigError) as error:
        build({**hard, "key": "rating"}, fields)
    assert error.value.faults == [f"{expected}'rating': the candidate has no such id"]
    with pytest.raises(ConfigError) as error:
        build({**hard, "key": "brand"}, fields)
    assert error.value.faults == [f"{expected}'brand': no history has it"]
    with pytest.raises(ConfigError, match="the search is soft; got 'kind'; write search: hard, or remove the key"):
        build({"name": "sim", "key": "kind"}, fields)
    with pytest.raises(ConfigError, match="sim reads a history, and the schema has none"):
        build({"name": "sim"}, Fields((ITEM,), {}))


def test_one_event_by_hand() -> None:
    """A hard search of one head, whose weights are equal: the mean of the newest two events of the category."""
    item, kind = Field("item", "id", 6, dim=1, side="item"), Field("kind", "id", 4, dim=1, side="item")
    settings = {"search": "hard", "select": 2, "heads": 1, "head_width": 1, "short": 0, "mlp": [1], "batch_norm": False}
    model = build({"name": "sim", **settings}, Fields((item, kind), {"seen": (kind, item)}))
    assert isinstance(model, SIM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.table("item").copy_(torch.tensor([[0.0], [0.0], [2.0], [3.0], [5.0], [7.0]]))
        model.top.layers[0].linear.weight.copy_(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        model.top.last.weight.fill_(1)
    history = HistoryBatch(
        {"item": torch.tensor([2, 3, 4, 5, 2]).int(), "kind": torch.tensor([2, 2, 3, 2, 3]).int()}, offsets([4, 1])
    )
    batch = Batch.single(2, {"item": torch.tensor([2, 2]).int(), "kind": torch.tensor([2, 2]).int()}, {"seen": history})
    # row 0: items 2, 3 and 5 have the category, of which 3 and 5 are the newest: (3 + 7) / 2; row 1: none has it
    assert model(batch).tolist() == [5.0, 0.0]
    assert model.explain(batch)["seen"].tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]


TINY: dict[str, Any] = {"mlp": [64, 32], "init_std": 0.1}


@pytest.mark.parametrize(("search", "least"), [("soft", 0.65), ("hard", 0.85)])
def test_old_events_are_read_that_a_short_history_has_lost(search: str, least: float) -> None:
    section = {"name": "sim", **TINY, "search": search, "short": 0, "select": 20, "heads": 2}
    assert train_on_old_events(section, steps=100) > least


def test_the_newest_events_do_not_reveal_the_label() -> None:
    assert train_on_old_events({"name": "din", **TINY, "attention": [16]}, last=RECENT, steps=100) < 0.6
