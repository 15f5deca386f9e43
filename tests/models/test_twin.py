"""TWIN: the attention that searches, per head, and what is computed once per event."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from long_histories import RECENT, train_on_old_events
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.twin import TWIN, _Path
from longrec.nn.segments import Segments
from longrec.testing.batches import (
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
    with_history,
)
from longrec.testing.case import Case
from longrec.testing.expect import expect_close
from longrec.testing.programs import capture, flatten

KIND = Field("kind", "id", 6, side="item")
KINDS = Fields(
    (Field("user", "id", 40, side="user"), KIND, ITEM), {"seen": (RATING, KIND, ITEM, GAP), "liked": (KIND, ITEM)}
)
SMALL: dict[str, Any] = {"select": 3, "heads": 2, "head_width": 3, "output": 5, "mlp": [8]}
SETTINGS = [SMALL, {**SMALL, "heads": 1, "select": 1}, {**SMALL, "select": 7}]


def twin(settings: dict[str, Any] | None = None, fields: Fields = KINDS) -> TWIN:
    model = Case("twin", settings or SMALL).lively(fields)
    assert isinstance(model, TWIN)
    return model


def with_select(model: TWIN, select: int) -> TWIN:
    """The same weights with another number of events."""
    again = twin({**model.config.model_dump(), "select": select}, model.fields)
    again.load_state_dict(model.state_dict())
    return again


def path_of(model: TWIN, history: str = "seen") -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def inputs_of(model: TWIN, batch: Batch, history: str = "seen") -> tuple[Tensor, Tensor, Segments]:
    return model._gather(batch, model.embed(batch), history)


def scores_of(path: _Path, q: Tensor, e: Tensor, head: int) -> Tensor:
    """The scores of the events of a row, one after the other (eq. 5)."""
    own, scores = path.columns(head), []
    for event in e:
        s = (path.query.weight @ q + path.query.bias)[own] @ (path.key.weight @ event[: path.inherent])[own]
        s = s / path.head_width**0.5
        if path.cross is not None and path.beta is not None:
            columns = (
                torch.split(event[path.inherent :], path.cross_widths),
                torch.split(path.cross[head], path.cross_widths),
            )
            for column, (value, weight) in enumerate(zip(*columns, strict=True)):
                s = s + (value @ weight) * path.beta[head, column]
        scores.append(s)
    return torch.stack(scores) if scores else torch.zeros(0)


def as_written(model: TWIN, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the mean weights of events, row by row, head by head and event by event."""
    embedded, logits = model.embed(batch), []
    weights = {name: torch.zeros(int(events.offsets[-1])) for name, events in batch.histories.items()}
    for row in range(batch.size):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, events in batch.histories.items():
            path, (q_BQ, e_UK, _) = path_of(model, history), inputs_of(model, batch, history)
            start, stop = events.offsets[row : row + 2].tolist()
            heads = []
            for head in range(path.heads):
                s = scores_of(path, q_BQ[row], e_UK[start:stop], head)
                order = sorted(range(stop - start), key=lambda j: (-s[j].item(), -j))[: path.select]
                at, w = [start + j for j in order], s[order].softmax(0)
                heads.append(w @ (e_UK[at] @ path.value.weight[path.columns(head)].t()))
                weights[history][at] += w / path.heads
            inputs.append(path.output.weight @ torch.cat(heads))
        logits.append(model.top(torch.cat(inputs).unsqueeze(0))[0, 0])
    return torch.stack(logits), weights


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_event_by_event(settings: dict[str, Any]) -> None:
    model, batch = twin(settings), ragged(12, fields=KINDS)
    with torch.no_grad():
        logits, weights = as_written(model, batch)
        expect_close(model(batch), logits, atol=1e-4)
        for history, w_N in model.explain(batch).items():
            expect_close(w_N, weights[history])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_layout_is_read_as_single_rows_are(settings: dict[str, Any]) -> None:
    """(d) Projections that all candidates share, or those of a request, equal those of each row."""
    model = twin(settings)
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


def test_the_search_computes_the_scores_of_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """(a) To the bit where both read the same projections, and else to their rounding."""
    import longrec.models.twin as module

    seen: list[Tensor] = []
    score = module.score

    def noted(q_BD: Tensor, k_XD: Tensor, b_X1: Tensor, segments: Segments) -> Tensor:
        seen.append(score(q_BD, k_XD, b_X1, segments))
        return seen[-1]

    monkeypatch.setattr(module, "score", noted)
    model = twin()
    for batch in (ragged(12, fields=KINDS), grouped([2, 0, 0, 1, 3, 3, 2], fields=KINDS)):
        seen.clear()
        q_BQ, e_UK, segments = inputs_of(model, batch)
        with torch.no_grad():
            attended = path_of(model).attend(q_BQ, e_UK, segments)
        assert len(seen) == 4  # both searches, then both attentions
        for s_N, own_S, (selection, _, _) in zip(seen[:2], seen[2:], attended, strict=True):
            assert len(own_S) < len(s_N)
            restored_N = selection.restore(own_S)
            expected_N = torch.where(restored_N != 0, s_N, 0.0)
            if segments.requests is segments:
                torch.testing.assert_close(restored_N, expected_N, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(restored_N, expected_N)


def test_the_selected_events_are_those_of_the_largest_weights() -> None:
    """The weights of the same attention over the whole history, head by head."""
    model = twin({**SMALL, "heads": 1})
    whole = with_select(model, 100)
    for batch in (ragged(30, fields=KINDS), repeated(shared(5, 9, fields=KINDS), KINDS)):
        few, every = model.explain(batch), whole.explain(batch)
        for history, events in batch.histories.items():
            for start, stop in pairwise(events.offsets.tolist()):
                own, all_of_row = few[history][start:stop], every[history][start:stop]
                chosen = set(own.nonzero().squeeze(1).tolist())
                assert chosen == set(all_of_row.topk(min(3, stop - start)).indices.tolist())
                if chosen:
                    at = sorted(chosen)
                    expect_close(own[at], all_of_row[at] / all_of_row[at].sum())


def test_as_many_events_as_the_history_has_equal_plain_attention() -> None:
    """(b) By torch's own function, with the bias as its mask."""
    model, batch = twin({**SMALL, "select": 7}), ragged(9, fields=KINDS, longest=7)
    path, (q_BQ, e_UK, segments) = path_of(model), inputs_of(model, batch)
    with torch.no_grad():
        k_UW, b_UH, v_UW = path.project(e_UK)
        q_BW = path.query(q_BQ)
        rows = []
        for row, (start, stop) in enumerate(pairwise(segments.offsets.tolist())):
            q, k, v = (x.reshape(1, -1, 2, 3).transpose(1, 2) for x in (q_BW[row], k_UW[start:stop], v_UW[start:stop]))
            bias = b_UH[start:stop].t().reshape(1, 2, 1, -1)
            empty = torch.zeros(1, 2, 1, 3)
            o = F.scaled_dot_product_attention(q, k, v, bias) if stop > start else empty
            rows.append(path.output(o.reshape(1, 6)))
        expect_close(path(q_BQ, e_UK, segments), torch.cat(rows))
        assert torch.equal(model(batch), with_select(model, 1000)(batch))


def test_without_beta_cross_columns_do_not_decide_what_is_read() -> None:
    """(c) Other ratings and times then change no weight. They stay in the values."""
    model, batch = twin(), ragged(12, fields=KINDS)
    count = int(batch.histories["seen"].offsets[-1])
    other = with_history(
        batch, "seen", {"rating": torch.arange(count).int() % 8, "time_gap": torch.arange(count).int() % 9}
    )
    assert model.inherent == {"seen": ["kind", "item"], "liked": ["kind", "item"]}
    assert model.cross == {"seen": ["rating", "time_gap"], "liked": []}
    assert (model.explain(other)["seen"] - model.explain(batch)["seen"]).abs().max() > 1e-3
    beta = path_of(model).beta
    assert beta is not None
    beta.data.zero_()
    assert torch.equal(model.explain(other)["seen"], model.explain(batch)["seen"])
    assert (model(other) - model(batch)).abs().max() > 1e-4


def test_events_are_projected_once_per_history_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """(d) In one pass over all events for all heads, and in rows of their own for those that a head selects."""
    counts: list[tuple[int, int | None]] = []
    project = _Path.project

    def noted(path: _Path, e_XK: Tensor, head: int | None = None) -> Any:
        counts.append((len(e_XK), head))
        return project(path, e_XK, head)

    fields = Fields(KINDS.features, {"seen": KINDS.histories["seen"]})
    model = twin(SMALL, fields)
    monkeypatch.setattr(_Path, "project", noted)
    model(shared(6, 20, fields=fields))
    assert counts == [(20, None)]
    counts.clear()
    batch = grouped([0, 0, 1, 1, 1], fields=fields, longest=20)
    model(batch)
    assert counts == [(int(batch.histories["seen"].offsets[-1]), None)]
    counts.clear()
    batch = ragged(3, fields=fields, lengths=[9, 1, 0])
    model(batch)
    assert counts == [(4, 0), (4, 1)]  # a search projects no event
    counts.clear()
    model(ragged(3, fields=fields, lengths=[3, 1, 0]))  # all events are selected
    assert counts == [(4, None)]


def test_of_events_of_equal_scores_the_newest_are_selected() -> None:
    model = twin()
    for batch in (ragged(2, fields=KINDS, lengths=[5, 6]), shared(2, 5, fields=KINDS)):
        events = batch.histories["liked"]
        same = {name: pick(column, [0] * len(cast(Tensor, column))) for name, column in events.columns.items()}
        w = model.explain(with_history(batch, "liked", same))["liked"].flatten()
        ends = [5, 11] if batch.layout.kind == "single" else [5, 10]
        assert w.nonzero().squeeze(1).tolist() == [at for end in ends for at in range(end - 3, end)]


def test_events_that_are_not_selected_are_not_learned_from() -> None:
    fields = Fields((ITEM,), {"seen": (ITEM,)})
    model, batch = twin({**SMALL, "heads": 1}, fields), ragged(1, fields=fields, lengths=[9])
    ids = torch.arange(10, 19).int()
    batch = with_history(batch, "seen", {"item": ids})
    chosen = ids[model.explain(batch)["seen"].nonzero().squeeze(1)].tolist()
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    grad = model.embeddings.table("item").grad
    assert grad is not None
    own = set(grad.to_dense().abs().sum(1).nonzero().squeeze(1).tolist())
    assert own - {int(cast(Tensor, batch.features["item"])[0])} == set(chosen)
    assert len(chosen) == 3


def test_a_program_selects_as_the_model() -> None:
    """Of histories longer and shorter than what is selected."""
    fields = Fields((KIND, ITEM), {"seen": (KIND, ITEM, GAP)})
    model = twin(SMALL, fields)
    with torch.no_grad():
        graph = capture(model).module()
        for candidates, events in ((5, 7), (3, 40), (4, 2)):
            batch = shared(candidates, events, fields=fields, seed=events)
            expect_close(graph(*flatten(batch).values()), model(batch))


def test_tokens_are_inherent() -> None:
    model = twin(SMALL, TOKENS)
    assert model.inherent == {"tokens": ["tokens.token"]}
    assert model.cross == {"tokens": ["tokens.label", "tokens.version", "time_gap"]}


def test_a_schema_without_a_history_is_refused() -> None:
    with pytest.raises(ConfigError, match="twin reads a history, and the schema has none"):
        build({"name": "twin"}, Fields((ITEM,), {}))


def test_two_events_by_hand() -> None:
    """One head of width 1: the score is the product of items plus the rating, and one event of two is selected."""
    item = Field("item", "id", 5, dim=1, side="item")
    rating = Field("rating", "id", 4, dim=1)
    settings = {"select": 1, "heads": 1, "head_width": 1, "output": 1, "mlp": [1], "batch_norm": False}
    model = build({"name": "twin", **settings}, Fields((item,), {"seen": (rating, item)}))
    assert isinstance(model, TWIN)
    path = path_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.table("item").copy_(torch.tensor([[0.0], [0.0], [1.0], [2.0], [3.0]]))
        model.embeddings.table("rating").copy_(torch.tensor([[0.0], [0.0], [1.0], [5.0]]))
        for weight in (path.query.weight, path.key.weight, path.cross, path.beta, path.output.weight):
            assert weight is not None
            weight.fill_(1)
        path.value.weight.copy_(torch.tensor([[10.0, 1.0]]))
        model.top.layers[0].linear.weight.copy_(torch.tensor([[0.0, 1.0]]))
        model.top.last.weight.fill_(1)
    columns = {"item": torch.tensor([2, 4, 2, 4]).int(), "rating": torch.tensor([3, 2, 3, 2]).int()}
    batch = Batch.single(
        3, {"item": torch.tensor([2, 4, 4]).int()}, {"seen": HistoryBatch(columns, offsets([2, 2, 0]))}
    )
    # scores of row 0: 1*1 + 5 and 1*3 + 1, of row 1: 3*1 + 5 and 3*3 + 1; values: 10*1 + 5 and 10*3 + 1
    assert model(batch).tolist() == [15.0, 31.0, 0.0]
    assert model.explain(batch)["seen"].tolist() == [1.0, 0.0, 0.0, 1.0]


TINY: dict[str, Any] = {"mlp": [64, 32], "init_std": 0.1}


def test_old_events_are_read_that_a_short_history_has_lost() -> None:
    section = {"name": "twin", **TINY, "heads": 2, "select": 20}
    assert train_on_old_events(section, steps=80) > 0.65
    assert train_on_old_events(section, steps=80, last=RECENT) < 0.6
