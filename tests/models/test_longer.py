"""LONGER: the transformer as written, merged tokens, what candidates share, and independence of other rows."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.registry import build
from longrec.models.longer import LONGER, _Path
from longrec.nn.merged_entries import plan_merge
from longrec.nn.merged_layers import InnerLayer, MergedLayer
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, ITEM, RATING, grouped, offsets, ragged, repeated, shared, take
from longrec.testing.case import Case
from longrec.testing.expect import expect_close

SMALL: dict[str, Any] = {"max_events": 9, "merge": 2, "recent": 2, "width": 8, "heads": 2, "mlp": [8]}
SETTINGS: list[dict[str, Any]] = [
    {**SMALL, "merge": 1, "recent": None},
    {**SMALL, "merge": 1, "recent": 3, "layers": 3, "max_events": 5},
    SMALL,
    {**SMALL, "merge": 3, "inner": False, "layers": 1},
    {**SMALL, "merge": 3, "layers": 3, "max_events": 4},
]


def longer(settings: dict[str, Any] | None = None, fields: Fields = FEW) -> LONGER:
    model = Case("longer", settings or SMALL).lively(fields)
    assert isinstance(model, LONGER)
    return model


def path_of(model: LONGER) -> _Path:
    return cast(_Path, model.paths["path_seen"])


def norm_of(x_TW: Tensor, norm: torch.nn.Module) -> Tensor:
    return F.layer_norm(x_TW, x_TW.shape[-1:], norm.weight, norm.bias)


def attend_as_written(layer: MergedLayer, x_TW: Tensor) -> Tensor:
    """A layer of a plain causal transformer over one sequence, in which every entry is updated."""
    heads, length, width = layer.heads, *x_TW.shape
    w_3HdW = layer.inner.weight.view(3, heads, width // heads, width)
    q, k, v = torch.einsum("tw,nhdw->nhtd", norm_of(x_TW, layer.norms[0]), w_3HdW)
    s_HTT = torch.einsum("htd,hsd->hts", q, k) / (width // heads) ** 0.5
    later_TT = torch.ones(length, length).triu(1).bool()
    o = torch.einsum("hts,hsd->thd", s_HTT.masked_fill(later_TT, -torch.inf).softmax(2), v)
    x_TW = x_TW + torch.einsum("tw,ow->to", o.flatten(1), layer.outer.weight) + layer.outer.bias
    return x_TW + layer.network(norm_of(x_TW, layer.norms[1]))


def inner_as_written(inner: InnerLayer, e_LE: Tensor) -> Tensor:
    """The inner transformer over the events of one group that exist."""
    x_LE = e_LE + inner.position_embedding[-len(e_LE) :]
    q, k, v = torch.einsum("le,noe->nlo", norm_of(x_LE, inner.norms[0]), inner.inner.weight.view(3, -1, e_LE.shape[1]))
    x_LE = x_LE + inner.outer((torch.einsum("lo,so->ls", q, k) / e_LE.shape[1] ** 0.5).softmax(1) @ v)
    return x_LE + inner.network(norm_of(x_LE, inner.norms[1]))


def tokens_as_written(path: _Path, e_TE: Tensor) -> Tensor:
    """Merged tokens of one row, group by group from the newest one."""
    e_TE, merge, tokens = e_TE[-path.max_events :], path.merge, []
    for age, stop in enumerate(range(len(e_TE), 0, -merge)):
        group = e_TE[max(stop - merge, 0) : stop]
        if path.inner is not None:
            group = inner_as_written(path.inner, group)
        wide = torch.cat([group.new_zeros((merge - len(group)) * group.shape[1]), group.flatten()])
        tokens.append(path.entry.weight @ wide + path.entry.bias + path.position_embedding[age])
    return torch.stack(tokens[::-1]) if tokens else e_TE.new_zeros(0, path.entry.out_features)


def as_written(model: LONGER, batch: Batch) -> Tensor:
    """Logits, row by row, from plain causal layers over the sequence that ends with the target."""
    embedded, path, logits = model.embed(batch), path_of(model), []
    q_BQ, e_UE, _ = model.queries(batch, embedded, "seen")
    for row in range(batch.size):
        start, stop = batch.histories["seen"].offsets[row : row + 2].tolist()
        user = torch.cat([vectors[row] for vectors in embedded.request.values()])
        assert path.user is not None
        globals_3W = torch.stack([path.user(user[None])[0], path.cls[0], path.target(q_BQ[row][None])[0]])
        x_TW = torch.cat([tokens_as_written(path, e_UE[start:stop]), globals_3W])
        for layer in path.layers:
            x_TW = attend_as_written(cast(MergedLayer, layer), x_TW)
            if path.recent is not None:
                x_TW = x_TW[-(path.recent + 3) :]
        own = torch.cat([*(v[row] for v in embedded.features.values()), norm_of(x_TW[-1], path.norm)])
        logits.append(model.top(own[None])[0, 0])
    return torch.stack(logits)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={s[k]}" for k in ("merge", "recent")))
def test_merge_of_one_and_all_queries_equal_a_plain_transformer(settings: dict[str, Any]) -> None:
    """Also with merged tokens, if the plain one reads them, and later layers their newest."""
    model, batch = longer(settings), ragged(12, longest=11, fields=FEW)
    with torch.no_grad():
        expect_close(model(batch), as_written(model, batch), atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS[1:3], ids=["merge=1", "merge=2"])
def test_keys_and_values_of_the_user_computed_once_equal_those_per_candidate(settings: dict[str, Any]) -> None:
    model = longer(settings)
    for candidates, events in ((5, 10), (3, 4), (4, 1), (2, 0)):
        batch = shared(candidates, events, fields=FEW)
        expect_close(model(batch), model(repeated(batch, FEW)))
    several = grouped([2, 0, 0, 1, 3, 3, 2, 2], fields=FEW)
    expect_close(model(several), model(several.ungroup()))


def test_each_candidate_adds_one_row_per_layer() -> None:
    model, rows = longer(), list[int]()
    for layer in path_of(model).layers:
        cast(MergedLayer, layer).norms[0].register_forward_hook(lambda _, x, y: rows.append(len(y)))
    model(shared(50, 8, fields=FEW))
    # Four merged tokens, user and cls; then the two newest ones, user and cls. Candidates are normalized apart.
    assert rows == [6, 50, 4, 50]
    rows.clear()
    model(grouped([0, 1, 1, 1, 0], fields=FEW))
    assert rows[1::2] == [5, 5]


def test_no_token_depends_on_the_candidates() -> None:
    model, seen = longer(), list[Tensor]()
    for layer in path_of(model).layers:
        cast(MergedLayer, layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = shared(6, 8, fields=FEW)
    model(batch)
    model(take_candidates(batch, 2))
    assert len(seen) == 4
    for all_NW, two_NW in zip(seen[:2], seen[2:], strict=True):
        expect_close(two_NW, all_NW)


def take_candidates(batch: Batch, count: int) -> Batch:
    """The first candidates of a shared batch."""
    again = shared(count, 8, fields=FEW)
    columns = {name: cast(Tensor, column)[:count] for name, column in batch.candidates.items()}
    return type(batch)(again.layout, batch.requests, columns, batch.histories)


@pytest.mark.parametrize("inner", [True, False])
def test_merge_pads_to_a_multiple_without_changing_the_output(inner: bool) -> None:
    """A token of an incomplete group equals that of its own events, with zeros where events are missing."""
    model = longer({**SMALL, "merge": 4, "inner": inner})
    path = path_of(model)
    for length in range(10):
        segments = Segments.of_offsets(offsets([length]).numpy(), torch.device("cpu"))
        plan = plan_merge(segments, 4, 9, 2, 2)
        e_UE = torch.randn(length, model.queries.key_widths["seen"])
        user_1I = torch.randn(1, cast(Any, path.user).in_features)
        x_NW = path.tokens(user_1I, e_UE, 1, plan)
        assert len(x_NW) == -(-length // 4) + 2
        expect_close(x_NW[:-2], tokens_as_written(path, e_UE))


def test_merge_counts_from_the_newest_event() -> None:
    """Older events come into the oldest token, and further ones, and leave the newer tokens as they are."""
    segments = [Segments.of_offsets(offsets([n]).numpy(), torch.device("cpu")) for n in (5, 7)]
    short, long = (plan_merge(each, 3, 100, None, 1) for each in segments)
    assert short.events_GK.tolist() == [[5, 0, 1], [2, 3, 4]]
    assert long.events_GK.tolist() == [[7, 7, 0], [1, 2, 3], [4, 5, 6]]
    capped = plan_merge(segments[1], 3, 4, None, 1)
    assert capped.events_GK.tolist() == [[7, 7, 3], [4, 5, 6]]
    assert long.age_G.tolist() == [2, 1, 0]


def test_companions_do_not_change_a_score() -> None:
    model, batch = longer(), ragged(40, longest=11, fields=FEW)
    scores = model(batch)
    for row in range(0, 40, 5):
        expect_close(model(take(batch, [row])), scores[row : row + 1])


def test_rows_of_very_different_lengths_are_read_as_single_rows_are() -> None:
    """Their rectangles are several. Some requests have more candidates than others."""
    model = longer({**SMALL, "max_events": 700, "merge": 2, "recent": 20, "layers": 3})
    batch = ragged(8, lengths=[400, 3, 0, 900, 90, 91, 1, 39], fields=FEW)
    plan = plan_merge(Segments.of(batch, "seen"), 2, 700, 20, 2)
    assert len(plan.entries.rectangles) > 1
    assert sum(plan.recent.sizes) < sum(plan.entries.sizes)
    scores, weights = model(batch), model.explain(batch)["seen"]
    for row in range(8):
        alone, (start, stop) = take(batch, [row]), batch.histories["seen"].offsets[row : row + 2].tolist()
        expect_close(model(alone), scores[row : row + 1])
        expect_close(model.explain(alone)["seen"], weights[start:stop])
    several = grouped([3, 0, 0, 0, 1, 2, 4, 3, 5], longest=600, fields=FEW)
    assert len(plan_merge(Segments.of(several, "seen"), 2, 700, 20, 2).entries.rectangles) > 1
    expect_close(model(several), model(several.ungroup()))


def test_nothing_is_computed_on_the_padding_of_rows() -> None:
    model, rows = longer(), list[int]()
    path_of(model).entry.register_forward_hook(lambda _, x, y: rows.append(len(y)))
    cast(MergedLayer, path_of(model).layers[0]).norms[0].register_forward_hook(lambda _, x, y: rows.append(len(y)))
    lengths = [1, 9, 0, 4, 30, 2]
    model(ragged(6, lengths=lengths, fields=FEW))
    groups = sum(-(-min(length, 9) // 2) for length in lengths)
    assert rows == [groups, groups + 12, 6]


def test_the_explanation_is_the_attention_of_the_first_layer() -> None:
    """Events of a token share its weight, those beyond the newest ones have none, and all layouts agree."""
    model, batch = longer(), ragged(9, longest=13, fields=FEW)
    with torch.no_grad():
        w_N = model.explain(batch)["seen"]
        embedded, path = model.embed(batch), path_of(model)
        q_BQ, e_UE, segments = model.queries(batch, embedded, "seen")
        layer = cast(MergedLayer, path.layers[0])
        for row in range(batch.size):
            start, stop = segments.host_offsets[row : row + 2].tolist()
            user = path.user(torch.cat([x[row] for x in embedded.request.values()])[None])  # type: ignore[misc]
            tokens = tokens_as_written(path, e_UE[start:stop])
            z = norm_of(torch.cat([tokens, user, path.cls, path.target(q_BQ[row : row + 1])]), layer.norms[0])
            w_3HdW = layer.inner.weight.view(3, 2, 4, 8)
            q, k = torch.einsum("tw,nhdw->nhtd", z, w_3HdW[:2])
            w = (torch.einsum("hd,htd->ht", q[:, -1], k) / 2).softmax(1).mean(0)
            for back in range(stop - start):
                group = len(tokens) - 1 - back // 2
                size = min(2, min(stop - start, 9) - 2 * (back // 2))
                expected = w[group] / size if back < 9 else torch.zeros(())
                expect_close(w_N[stop - 1 - back], expected)
        one = shared(4, 11, fields=FEW)
        expect_close(model.explain(one)["seen"].flatten(), model.explain(repeated(one, FEW))["seen"])
        several = grouped([1, 0, 0, 2], fields=FEW)
        expect_close(model.explain(several)["seen"], model.explain(several.ungroup())["seen"])


def test_a_schema_without_fields_of_the_user_has_cls_alone() -> None:
    fields = Fields((ITEM,), {"seen": (RATING, ITEM)})
    model, batch = longer(fields=fields), ragged(5, fields=fields)
    assert path_of(model).user is None
    expect_close(model(take(batch, [3])), model(batch)[3:4])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads: 3 heads do not divide a width of 8"):
        build({"name": "longer", **SMALL, "heads": 3}, FEW)
