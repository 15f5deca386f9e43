from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor

from longrec.data import synthetic
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.kfatt import KalmanAttention, KFAtt, SessionEncoder
from longrec.nn.segments import Segments
from longrec.testing.batches import ITEM, RATING, SESSION, TOKENS, grouped, offsets, pick, ragged, repeated, shared
from longrec.testing.case import Case

KIND = Field("kind", "id", 5, side="item")
QUERY = Field("query", "id", 7)
KEYED = Fields(
    (Field("user", "id", 40, side="user"), QUERY, ITEM, KIND),
    {"seen": (RATING, ITEM, KIND, SESSION), "asked": (QUERY, ITEM)},
)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"frequency": False},
    {"heads": 2},
    {"sessions": True, "heads": 2, "max_positions": 3},
]


def kfatt(settings: dict[str, Any], fields: Fields = KEYED) -> KFAtt:
    model = Case("kfatt", {"attention": 4, "hidden": 5, **settings}).lively(fields)
    assert isinstance(model, KFAtt)
    return model


def one(lengths: list[int]) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def estimate(path: KalmanAttention, q: Tensor, k: Tensor, v: Tensor, keys: list[object]) -> Tensor:
    """The equations of one row, key by key."""
    mean, certainty = path.mean(q.unsqueeze(0))[0], path.precision(q.unsqueeze(0))[0].exp()
    asking, key = path.asking(q.unsqueeze(0))[0], path.key(k)
    v = v if path.value is None else path.value(v)
    estimates = []
    for head in range(path.heads):
        size, wide = len(asking) // path.heads, v.shape[1] // path.heads
        at, of = slice(head * size, (head + 1) * size), slice(head * wide, (head + 1) * wide)
        above, below = certainty[head] * mean[of], certainty[head].clone()
        if path.noise is None:
            for index in range(len(k)):
                precision = (asking[at] @ key[index, at]).exp()
                above, below = above + precision * v[index, of], below + precision
        else:
            for name in dict.fromkeys(keys):
                own = [index for index, other in enumerate(keys) if other == name]
                between = 1 / (asking[at] @ key[own[0], at]).exp()
                within = path.noise(k[own[:1]])[0, head].exp()
                weight = 1 / (between + within / len(own))
                above, below = above + weight * v[own][:, of].mean(0), below + weight
        estimates.append(above / below)
    x = torch.cat(estimates)
    return x if path.outer is None else path.outer(x.unsqueeze(0))[0]


def in_sessions(encoder: SessionEncoder, v: Tensor, session: list[int]) -> Tensor:
    """Return the encoded events of one row, session by session."""
    outputs, start = [], 0
    while start < len(session):
        stop = next((at for at in range(start, len(session)) if session[at] != session[start]), len(session))
        back = torch.arange(stop - start).flip(0).clamp(max=len(encoder.position_embedding) - 1)
        x = v[start:stop] + encoder.position_embedding[back]
        projections = (
            projection.view(len(x), encoder.layer.heads, -1).transpose(0, 1) for projection in encoder.layer.project(x)
        )
        q, k, w = projections
        o = (q @ k.transpose(1, 2)).softmax(2) @ w
        outputs.append(encoder.layer.rest(x, o.transpose(0, 1).flatten(1)))
        start = stop
    return torch.cat([v[:0], *outputs])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equations_key_by_key(settings: dict[str, Any]) -> None:
    """The whole model again as loops over rows and keys."""
    model, batch = kfatt(settings), ragged(9, fields=KEYED)
    assert model.columns == {"seen": "kind", "asked": "item"}
    embedded, logits = model.embeddings(batch), []
    for row in range(9):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, column in model.columns.items():
            assert column is not None
            start, stop = batch.histories[history].offsets[row : row + 2].tolist()
            columns, vectors_of_events = batch.histories[history].columns, embedded.histories[history]
            v = torch.cat([vectors_of_events[name][start:stop] for name in model.queries.key_columns[history]], 1)
            if model.config.sessions:
                session = columns.get(SESSION.name)
                session_ids = [0] * len(v) if session is None else cast(Tensor, session)[start:stop].tolist()
                v = in_sessions(cast(SessionEncoder, model.encoders[f"encoder_{history}"]), v, session_ids)
            ids = cast(Tensor, columns[column])[start:stop].tolist()
            keys = [at if at > 1 else (at, index) for index, at in enumerate(ids)]
            path = cast(KalmanAttention, model.paths[f"path_{history}"])
            inputs.append(
                estimate(path, embedded.features[column][row], vectors_of_events[column][start:stop], v, keys)
            )
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


def attention(frequency: bool = True) -> KalmanAttention:
    torch.manual_seed(0)
    return KalmanAttention(3, 4, 5, 6, 1, frequency)


def sure(path: KalmanAttention, log_precision: float) -> KalmanAttention:
    """The same with a prior as sure as this, whatever the query."""
    assert path.precision.last is not None
    with torch.no_grad():
        path.precision.last.weight.zero_()
        path.precision.last.bias.fill_(log_precision)
    return path


def noisy(path: KalmanAttention, log_variance: float) -> KalmanAttention:
    """The same with clicks that vary as much as this within a key."""
    assert path.noise is not None
    assert path.noise.last is not None
    with torch.no_grad():
        path.noise.last.weight.zero_()
        path.noise.last.bias.fill_(log_variance)
    return path


def test_a_a_prior_that_knows_nothing_leaves_softmax_attention() -> None:
    path, owns = sure(attention(frequency=False), -80.0), one([4, 2])
    q, k, v = torch.randn(2, 3), torch.randn(6, 3), torch.randn(6, 4)
    w_N = owns.softmax(owns.dot(path.asking(q), path.key(k)))
    torch.testing.assert_close(path(q, k, v, owns), owns.weighted_sum(w_N, v))


def test_b_an_empty_history_gives_the_prior() -> None:
    path, q = attention(), torch.randn(3, 3)
    for owns in (one([0, 0, 0]), Segments(offsets([0]), 3, 0, shared=True)):
        actual = path(q, torch.zeros(0, 3), torch.zeros(0, 4), owns, torch.zeros(0))
        torch.testing.assert_close(actual, path.mean(q))
    # and beside a row that has one
    actual = path(q, torch.randn(2, 3), torch.randn(2, 4), one([0, 2, 0]), torch.ones(2))
    torch.testing.assert_close(actual[[0, 2]], path.mean(q)[[0, 2]])


def test_c_distinct_keys_without_noise_are_the_base_form() -> None:
    path, base = noisy(attention(), -80.0), attention(frequency=False)
    base.load_state_dict({name: x for name, x in path.state_dict().items() if not name.startswith("noise")})
    q, k, v, owns = torch.randn(2, 3), torch.randn(6, 3), torch.randn(6, 4), one([4, 2])
    for sizes in (torch.ones(6), None):
        torch.testing.assert_close(path(q, k, v, owns, sizes), base(q, k, v, owns), rtol=1e-4, atol=1e-5)


def test_d_many_clicks_of_a_key_weigh_no_more_than_one_without_noise() -> None:
    """The weight of a key rises with its clicks and ends at 1/s_m^2; that of plain attention rises without end."""
    path, base = noisy(sure(attention(), 0.0), 1.0), sure(attention(frequency=False), 0.0)
    base.load_state_dict({name: x for name, x in path.state_dict().items() if not name.startswith("noise")})
    q, keys = torch.randn(1, 3), torch.randn(2, 3)
    limit = (path.asking(q) @ path.key(keys[:1]).t()).exp().item()
    alone = 1 / ((path.asking(q) @ path.key(keys[1:]).t()).neg().exp().item() + torch.e)
    seen = []
    for count in (1, 3, 30, 30_000):
        k = torch.cat([keys[:1].expand(count, -1), keys[1:]])
        sizes = torch.tensor([count] * count + [1], dtype=torch.float32)
        ((w_N, w_B),) = path.weights(q, k, one([count + 1]), sizes)
        # The prior's precision is 1, so that weights beside it are precisions.
        seen.append(w_N[:-1].sum().item() / w_B.item())
        assert seen[-1] == pytest.approx(1 / (1 / limit + torch.e / count), rel=1e-3)
        assert w_N[-1].item() / w_B.item() == pytest.approx(alone, rel=1e-3)
        ((w_N, w_B),) = base.weights(q, k, one([count + 1]), None)
        assert w_N[:-1].sum().item() / w_B.item() == pytest.approx(limit * count, rel=1e-3)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
def test_e_order_and_longer_neighbors_change_nothing(settings: dict[str, Any]) -> None:
    """Padding is what a longer row of the batch would bring."""
    model, batch = kfatt(settings), ragged(4, fields=KEYED, lengths=[3, 60, 0, 5])
    turned = {}
    for history, events in batch.histories.items():
        order = [at for a, b in pairwise(events.offsets.tolist()) for at in reversed(range(a, b))]
        turned[history] = HistoryBatch({name: pick(x, order) for name, x in events.columns.items()}, events.offsets)
    actual = model(batch)
    torch.testing.assert_close(model(replace(batch, histories=turned)), actual, rtol=1e-4, atol=1e-5)
    short = {}
    for history, events in batch.histories.items():
        keep = [at for row in (0, 2, 3) for at in range(*events.offsets[row : row + 2].tolist())]
        columns = {name: pick(x, keep) for name, x in events.columns.items()}
        short[history] = HistoryBatch(columns, offsets([3, 0, 5]))
    features = {name: pick(x, [0, 2, 3]) for name, x in batch.features.items()}
    torch.testing.assert_close(model(Batch.single(3, features, short)), actual[[0, 2, 3]], rtol=1e-4, atol=1e-5)


def test_variances_are_positive_and_finite_however_far_the_scores_go() -> None:
    path = noisy(sure(attention(), 500.0), -500.0)
    q, k, v, owns = 100 * torch.randn(2, 3), 100 * torch.randn(6, 3), torch.randn(6, 4), one([4, 2])
    for each in (path, noisy(sure(path, -500.0), 500.0)):
        ((w_N, w_B),) = each.weights(q, k, owns, torch.ones(6))
        assert (w_N >= 0).all()
        assert (w_B >= 0).all()
        torch.testing.assert_close(owns.sum(w_N.unsqueeze(1)).squeeze(1) + w_B, torch.ones(2))
        assert each(q, k, v, owns, torch.ones(6)).isfinite().all()


def test_events_see_their_session_only() -> None:
    torch.manual_seed(0)
    encoder, v = SessionEncoder(4, 2, 3, 0.5), torch.randn(7, 4)
    session = torch.tensor([3, 3, 2, 2, 2, 2, 2])
    before = encoder(v, one([4, 3]), session)  # a row ends where the number of the session does not change
    for at, own in ((0, {0, 1}), (3, {2, 3}), (5, {4, 5, 6})):
        other = v.clone()
        other[at] += 1
        moved = (encoder(other, one([4, 3]), session) - before).abs().sum(1) > 1e-6
        assert set(moved.nonzero().squeeze(1).tolist()) == own
    # and the places of a session are its own
    torch.testing.assert_close(encoder(v[:2], one([2]), session[:2]), before[:2])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_score_by_what_is_left_of_the_prior(settings: dict[str, Any]) -> None:
    model, batch, request = kfatt(settings), ragged(9, fields=KEYED), shared(4, 5, fields=KEYED)
    explanation, again = model.explain(batch), model.explain(repeated(request, KEYED))
    for history, w_N in explanation.items():
        bounds = batch.histories[history].offsets.tolist()
        assert w_N.shape == (bounds[-1],)
        assert all(0 < w_N[a:b].sum() < 1 for a, b in pairwise(bounds) if b > a)
    for history, w_BT in model.explain(request).items():
        assert w_BT.shape == (4, 5)
        torch.testing.assert_close(w_BT.flatten(), again[history], rtol=1e-4, atol=1e-5)
    together = grouped([2, 0, 2, 1], fields=KEYED)
    for history, w_N in model.explain(together).items():
        torch.testing.assert_close(w_N, model.explain(together.ungroup())[history], rtol=1e-4, atol=1e-5)


def test_sessions_are_encoded_once_per_request() -> None:
    model, rows = kfatt({"sessions": True}), []
    layer = cast(SessionEncoder, model.encoders["encoder_seen"]).layer
    layer.inner.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model(shared(6, 5, fields=KEYED))
    batch = grouped([2, 0, 2, 1, 1], fields=KEYED)
    model(batch)
    assert rows == [5, int(batch.histories["seen"].offsets[-1])]


def test_the_query_column() -> None:
    """A search is asked by its query, where the history has one; tokens by the candidate as a whole."""
    model = kfatt({"query": "query"})
    assert model.columns == {"seen": "kind", "asked": "query"}
    assert kfatt({}, TOKENS).columns == {"tokens": None}
    with pytest.raises(ConfigError, match=r"model.query: must be an id column of a history and the impression too"):
        build({"name": "kfatt", "query": "rating"}, KEYED)
    with pytest.raises(ConfigError, match="kfatt reads a history, and the schema has none"):
        build({"name": "kfatt"}, Fields((ITEM,), {}))


FREQUENT = synthetic.generate_dataset("frequent_queries", 2)


@pytest.mark.parametrize("model", [{"name": "kfatt"}], ids=str)
def test_a_loud_category_does_not_drown_the_others(model: dict[str, Any], tmp_path: Path) -> None:
    assert model in FREQUENT.must
    assert solves(synthetic.generate_dataset("frequent_queries"), model, tmp_path)


@pytest.mark.parametrize("model", FREQUENT.must_not[:1], ids=str)
def test_a_loud_category_drowns_the_others_where_clicks_are_counted(model: dict[str, Any], tmp_path: Path) -> None:
    dataset = synthetic.generate_dataset("frequent_queries")
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, model, tmp_path))
    assert actual < (0.5 + bayes_auc) / 2 + 0.03


def test_clicks_reveal_an_interest(tmp_path: Path) -> None:
    assert solves(
        synthetic.generate_dataset("one_interest", users=800), {"name": "kfatt", "mlp": [32]}, tmp_path, epochs=4
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"frequency": False}, {"sessions": True, "heads": 2}], ids=str)
def test_every_form_learns_an_interest(settings: dict[str, Any], tmp_path: Path) -> None:
    assert solves(synthetic.generate_dataset("one_interest"), {"name": "kfatt", **settings}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", FREQUENT.must_not[1:], ids=str)
def test_whoever_counts_clicks_hears_the_loudest(model: dict[str, Any], tmp_path: Path) -> None:
    assert not solves(synthetic.generate_dataset("frequent_queries"), model, tmp_path)
