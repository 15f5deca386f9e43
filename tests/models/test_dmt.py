from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.dmt import DMT, _Path, _waves
from longrec.testing.batches import FEW, FIELDS, ITEM, RATING, ragged, shared, values, with_feature
from longrec.testing.case import Case

SMALL = {"embedding_dim": 6, "heads": 2, "expert": [8], "tower": []}


def dmt(fields: Fields = FEW, **settings: object) -> DMT:
    model = Case("dmt", {**SMALL, **settings}).lively(fields)
    assert isinstance(model, DMT)
    return model


def path_of(model: DMT, history: str) -> _Path:
    path = model.paths[f"path_{history}"]
    assert isinstance(path, _Path)
    return path


def layer_by_hand(layer: nn.Module, q_LD: Tensor, k_TD: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the outputs of L rows that attend to T events, head by head, and their mean weights."""
    size = layer.outer.in_features // heads
    w_q, w_k, w_v = layer.inner.weight.chunk(3)
    outputs, weights = [], []
    for head in range(heads):
        at = slice(head * size, head * size + size)
        q, k, v = q_LD @ w_q[at].t(), k_TD @ w_k[at].t(), k_TD @ w_v[at].t()
        weights.append((q @ k.t() / size**0.5).softmax(1))
        outputs.append(weights[-1] @ v)
    x = torch.cat(outputs, 1) @ layer.outer.weight.t()
    norms, width = layer.norms, q_LD.shape[1:]
    x = layer_norm(q_LD + x, width, norms[0].weight, norms[0].bias)
    y = (x @ layer.first.weight.t() + layer.first.bias).relu() @ layer.second.weight.t() + layer.second.bias
    return layer_norm(x + y, width, norms[1].weight, norms[1].bias), torch.stack(weights).mean(0)


@pytest.mark.parametrize("settings", [{}, {"position": "sincos", "encoder": 2, "decoder": 2}, {"encoder": 0}], ids=str)
def test_encoder_and_decoder_row_by_row(settings: dict[str, object]) -> None:
    model, batch = dmt(**settings), ragged(7, fields=FEW)
    path, embedded = path_of(model, "seen"), model.embeddings(batch)
    q_BQ, e_ND, segments = model.queries(batch, embedded, "seen")
    actual, weights = path(q_BQ, e_ND, segments)
    offsets, encode_history = segments.offsets.tolist(), model.encode_history(batch, "seen")
    assert isinstance(path.position_embedding, Tensor)
    for row, (start, stop) in enumerate(zip(offsets, offsets[1:])):
        if start == stop:
            assert torch.equal(actual[row], path.nothing)
            continue
        positions = path.position_embedding[torch.arange(stop - start).flip(0)]
        x = e_ND[start:stop] * path.width**0.5 + positions
        for layer in path.encoder:
            x, _ = layer_by_hand(layer, x, x, 2)
        torch.testing.assert_close(encode_history[start:stop], x, rtol=1e-4, atol=1e-5)
        assert path.absent is not None
        y = torch.cat([q_BQ[row], path.absent]).unsqueeze(0) * path.width**0.5
        for layer in path.decoder:
            y, w = layer_by_hand(layer, y, x, 2)
        torch.testing.assert_close(actual[row], y[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights[start:stop], w[0], rtol=1e-4, atol=1e-5)


def test_experts_read_all_behaviors_and_fields() -> None:
    model, batch = dmt(FIELDS), ragged(7)
    embedded = model.embeddings(batch)
    inputs = list(embedded.features.values())
    inputs += [path_of(model, name)(*model.queries(batch, embedded, name))[0] for name in FIELDS.histories]
    h_BKH = model.experts(torch.cat(inputs, 1))
    torch.testing.assert_close(model(batch), model.towers(h_BKH)[:, 0])


def test_positions_are_counted_back_from_the_newest_event() -> None:
    waves = _waves(4, 5)
    assert waves[0].tolist() == [0, 1, 0, 1, 0]
    speed = 10_000 ** (-2 / 5)
    torch.testing.assert_close(waves[3, 2:4], torch.tensor([math.sin(3 * speed), math.cos(3 * speed)]))
    model = dmt(encoder=0)
    long = shared(2, 5, fields=FEW)
    e_UD, segments = model.queries.gather_keys(long, model.embeddings(long), "seen")
    path = path_of(model, "seen")
    assert isinstance(path.position_embedding, Tensor)
    actual = model.encode_history(long, "seen") - e_UD * path.width**0.5
    torch.testing.assert_close(actual, path.position_embedding[:5].flip(0), rtol=1e-4, atol=1e-5)
    assert dmt(position="time").order_matters is False


def test_a_one_expert_is_a_shared_bottom() -> None:
    model, batch = dmt(experts=1, tasks={"bought": 1.0}), ragged(7, fields=FEW)
    assert model.experts.gates.linear is None
    h_BKH = model.represent(batch).view(7, 2, 8)
    assert torch.equal(h_BKH[:, 0], h_BKH[:, 1])


def test_b_without_a_bias_field_the_bias_is_one_for_all() -> None:
    """Every row the same missing value: training adds a constant, which moves no rank."""
    model, batch = dmt(FIELDS, bias=["hour"], batch_norm=False), ragged(9)
    batch = with_feature(batch, "hour", torch.zeros(9, dtype=torch.int32))
    y_b = model.bias_logit(batch)
    torch.testing.assert_close(y_b, y_b[:1].expand(9, -1))
    served, trained = model(batch), model.train()(batch)
    torch.testing.assert_close(trained, served + y_b[0, 0])
    assert y_b[0, 0].abs() > 1e-3


def test_c_an_encoder_sees_no_candidate_and_a_request_encodes_once() -> None:
    model, batch = dmt(), ragged(7, fields=FEW)
    other = with_feature(batch, "item", values(ITEM, 7, torch.Generator().manual_seed(9)))
    assert torch.equal(model.encode_history(batch, "seen"), model.encode_history(other, "seen"))
    assert not torch.allclose(model(batch), model(other))
    seen: list[int] = []
    path_of(model, "seen").encoder[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    model(shared(50, 6, fields=FEW))
    assert seen == [6], "once for all 50 candidates"


def test_d_what_is_served_reads_no_bias_field() -> None:
    model, batch = dmt(FIELDS, bias=["hour"], tasks={"bought": 0.5}), ragged(40)
    other = with_feature(batch, "hour", values(Field("hour", "id", 27), 40, torch.Generator().manual_seed(9)))
    served = model(batch)
    assert torch.equal(model(other), served)
    without = replace(batch, candidates={name: x for name, x in batch.candidates.items() if name != "hour"})
    assert torch.equal(model(without), served), "it is not even looked for"
    assert not torch.allclose(model.train().logits(other), model.logits(batch))
    model.loss(batch).backward()
    assert all(
        parameter.grad is not None and parameter.grad.is_sparse
        for parameter in model.bias_embeddings.embedding_parameters()
    )
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.bias.parameters())


def test_e_a_history_without_events_is_a_fixed_vector() -> None:
    model = dmt(FIELDS)
    batch = ragged(6, lengths=[0, 3, 0, 1, 0, 2])
    embedded = model.embeddings(batch)
    for history in FIELDS.histories:
        path = path_of(model, history)
        u_BD = path(*model.queries(batch, embedded, history))[0]
        assert u_BD.isfinite().all()
        assert torch.equal(u_BD[[0, 2, 4]], path.nothing.expand(3, -1))
        assert not torch.equal(u_BD[1], u_BD[3])


def test_no_weight_is_shared_between_behaviors() -> None:
    model, batch = dmt(FIELDS), ragged(6)
    embedded = model.embeddings(batch)
    before = {name: path_of(model, name)(*model.queries(batch, embedded, name))[0] for name in FIELDS.histories}
    with torch.no_grad():
        for parameter in path_of(model, "liked").parameters():
            parameter.add_(torch.randn_like(parameter))
    after = {name: path_of(model, name)(*model.queries(batch, embedded, name))[0] for name in FIELDS.histories}
    assert torch.equal(after["seen"], before["seen"])
    assert not torch.allclose(after["liked"], before["liked"])


def test_bias_fields_that_are_not_there_are_refused_and_a_biased_model_is_no_base() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"name": "dmt", "bias": ["huor", "rating", "hour", "hour"]}, FIELDS)
    assert [fault[:40] for fault in caught.value.faults] == [
        "model.bias: 'huor' is no feature of the ",
        "model.bias: 'rating' is no feature of th",
        "model.bias: names a feature twice",
    ]
    assert "did you mean 'hour'?" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="dmt cannot be a base"):
        build({"name": "mmoe", "base": {"name": "dmt", "bias": ["hour"]}}, FIELDS)
    assert build({"name": "mmoe", "base": {"name": "dmt"}}, FEW).order_matters


def test_all_candidate_fields_query_a_history_of_tokens() -> None:
    fields = Fields((ITEM,), {"tokens": (Field("tokens.token", "embedding", 0, width=6), RATING)})
    model, batch = dmt(fields), ragged(7, fields=fields)
    assert path_of(model, "tokens").absent is None
    assert model(batch).isfinite().all()


def test_clicks_and_orders_mean_different_things(tmp_path: Path) -> None:
    dataset = generate_dataset("two_behaviors")
    section = next(dict(section) for section in dataset.must if section["name"] == "dmt")
    assert solves(dataset, section, tmp_path / "apart")
    mixed = generate_dataset("two_behaviors", as_one=True)
    assert section in mixed.must_not
    actual, bayes_auc = aucs_of(mixed, run_in(mixed, section, tmp_path / "mixed"))
    assert actual < 0.6 < mixed.required_auc(bayes_auc)
