from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from synthetic_runs import aucs_of, run_in
from torch import Tensor

from longrec.data.log import Log
from longrec.data.synthetic import SyntheticDataset, compute_splits, generate_dataset
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import ConfigError, RunError
from longrec.features.batch import HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.base import Model
from longrec.models.core.registry import build
from longrec.models.res_embedding import InterestGraph, ResEmbedding, edges
from longrec.testing import Case, check_case
from longrec.testing.batches import FEW, GAP, ITEM, offsets, ragged
from longrec.training.blocks import refuse_training_window
from longrec.training.warm_start import inherit

WEIGHTINGS = ["average", "gcn", "attention"]
POOLING: dict[str, Any] = {"base": {"name": "pooling"}}


def make_history(*walks: list[int], name: str = "seen") -> dict[str, HistoryBatch]:
    """Users who met these items."""
    ids = torch.tensor([item for walk in walks for item in walk], dtype=torch.int32)
    return {name: HistoryBatch({"item": ids}, offsets([len(walk) for walk in walks]))}


def random_history(seed: int = 0) -> dict[str, HistoryBatch]:
    random = np.random.default_rng(seed)
    return make_history(*(random.integers(0, 60, random.integers(0, 12)).tolist() for _ in range(30)))


class Drawn(Case):
    """A case whose model has a graph."""

    def build(self, seed: int = 0, fields: Fields | None = None) -> Model:
        model = super().build(seed, fields)
        model.fit_statistics([random_history()])
        return model


def res(settings: dict[str, Any], fields: Fields = FEW) -> ResEmbedding:
    model = Drawn("res_embedding", settings).lively(fields)
    assert isinstance(model, ResEmbedding)
    return model


def dense(model: ResEmbedding, z_nn: Tensor) -> Tensor:
    """W of equations 2 to 4 as a whole matrix, from Z."""
    if model.config.weighting == "average":
        return z_nn / z_nn.sum(1, keepdim=True)
    if model.config.weighting == "gcn":
        d = z_nn.sum(1)
        return z_nn / (d.unsqueeze(1) * d).sqrt()
    c = model.graph.centers.table("item")
    w = z_nn * (c @ c.t() / c.shape[1] ** 0.5).exp()
    return w / w.sum(1, keepdim=True)


def strengths(model: ResEmbedding, pasts: list[dict[str, HistoryBatch]]) -> Tensor:
    """Z ``[n, n]`` by loops over all pairs of events, pruned, with the items themselves."""
    n, config = model.item.rows, model.config
    z = torch.zeros(n, n)
    for piece in pasts:
        ids, bounds = piece["seen"].columns["item"].tolist(), piece["seen"].offsets.tolist()  # type: ignore[union-attr]
        for start, stop in zip(bounds, bounds[1:]):
            for one in range(start, stop):
                for other in range(one + 1, min(one + 1 + config.window, stop)):
                    if ids[one] != ids[other] and min(ids[one], ids[other]) > 1:
                        z[ids[one], ids[other]] += 1
                        z[ids[other], ids[one]] += 1
    for row in z:
        kept = sorted(range(n), key=lambda item: (-row[item].item(), item))[: config.neighbors]
        row[[item for item in range(n) if item not in kept]] = 0
    strongest = z.max(1).values
    return z + torch.diag(torch.where(strongest == 0, torch.ones(n), config.self_weight * strongest))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("settings", [{}, {"window": 2, "neighbors": 3, "self_weight": 0.5}], ids=str)
def test_equations_1_to_4_by_whole_matrices(weighting: str, settings: dict[str, Any]) -> None:
    model = res({**POOLING, "weighting": weighting, **settings})
    pieces = [random_history(1), random_history(2)]
    model.fit_statistics(pieces)
    expected = dense(model, strengths(model, pieces)) @ model.graph.centers.table("item") + model.residuals
    torch.testing.assert_close(model.vectors(), expected, rtol=1e-4, atol=1e-5)
    batch = ragged(9, fields=FEW)
    actual = model.base.embeddings(batch)  # with a gradient: centers of the items of the batch
    torch.testing.assert_close(actual.features["item"], expected[batch.features["item"].long()], rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    ids = batch.histories["seen"].columns["item"]
    torch.testing.assert_close(actual.histories["seen"]["item"], expected[ids.long()], rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_an_edge_is_two_items_near_each_other_in_one_history() -> None:
    walks = make_history([5, 6, 7, 5, 9], [], [9, 1, 8], [6, 5])
    events = [(walks["seen"].columns["item"].numpy(), walks["seen"].offsets.numpy())]  # type: ignore[union-attr]
    one, other, count = edges(events, 20, 1)
    assert list(zip(one.tolist(), other.tolist(), count.tolist())) == [
        *((5, 6, 2), (5, 7, 1), (5, 9, 1), (6, 5, 2), (6, 7, 1), (7, 5, 1), (7, 6, 1), (9, 5, 1)),
    ]
    wider = {(a, b): c for a, b, c in zip(*(column.tolist() for column in edges(events, 20, 2)))}
    assert wider[8, 9] == wider[9, 8] == 1  # past an item that is unknown, which joins nothing
    assert wider[5, 7] == 2
    assert not any(1 in pair for pair in wider)
    assert [len(column) for column in edges([], 20, 3)] == [0, 0, 0]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_without_residuals_items_of_one_neighborhood_are_one(weighting: str) -> None:
    model = res({**POOLING, "weighting": weighting, "self_weight": 0})
    model.fit_statistics([make_history([10, 20], [11, 20], [10, 30], [11, 30])])
    with torch.no_grad():
        model.residuals.zero_()
    e = model.vectors()
    if weighting == "attention":  # the score asks by the item's own center
        with torch.no_grad():
            c = model.graph.centers.table("item")
            c[11] = c[10]
        e = model.vectors()
    torch.testing.assert_close(e[10], e[11])
    assert not torch.allclose(e[10], e[20])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_b_without_edges_and_residuals_it_is_a_plain_embedding(weighting: str) -> None:
    model = Case("res_embedding", {**POOLING, "weighting": weighting}).lively(FEW)
    assert isinstance(model, ResEmbedding)
    with torch.no_grad():
        model.residuals.zero_()
    c = model.graph.centers.table("item")
    torch.testing.assert_close(model.vectors(), c, rtol=0, atol=1e-6)
    plain = build(POOLING["base"], FEW).eval()
    plain.load_state_dict({**model.base.state_dict(), "embeddings.table_item": c.detach()})
    batch = ragged(9, fields=FEW)
    torch.testing.assert_close(model(batch), plain(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_c_the_table_of_evaluation_equals_the_vectors_of_training(weighting: str) -> None:
    model, batch = res({"weighting": weighting}), ragged(40, fields=FEW)
    in_training = model(batch)  # with a gradient: on the fly
    with torch.no_grad():
        torch.testing.assert_close(model(batch), in_training, rtol=1e-4, atol=1e-5)
        model.graph.centers.table("item").add_(0.5)  # a table that is no longer true is made again
        again = model(batch)
    assert (again - in_training).abs().max() > 1e-3
    torch.testing.assert_close(again, model(batch), rtol=1e-4, atol=1e-5)
    assert not any("table_of_all" in name for name in model.state_dict())
    assert model.train().centered.table_of_all.numel() == 0


@pytest.mark.parametrize("settings", [{}, *ResEmbedding.variants], ids=str)
def test_with_a_graph_too_it_passes_the_conformance_suite(settings: dict[str, Any]) -> None:
    check_case(
        Drawn("res_embedding", settings),
        only=[
            "rows_do_not_see_each_other",
            "many_rows_score_as_few",
            "shared_batch_scores_as_ragged",
            "every_parameter_gets_a_gradient",
            "only_touched_rows_move",
            "saved_and_loaded",
        ],
    )


def test_a_program_with_a_graph_agrees() -> None:
    case = Drawn("res_embedding", {**POOLING, "weighting": "attention"}, variant=True)
    check_case(case, only=["exported_program_agrees"])


def test_equation_5_penalizes_each_item_of_the_batch_once() -> None:
    model, batch = res({**POOLING, "penalty": 0.5}), ragged(9, fields=FEW)
    met = {*batch.features["item"].tolist(), *batch.histories["seen"].columns["item"].tolist()}  # type: ignore[union-attr]
    extra = 0.5 * model.residuals[sorted(met)].square().sum()
    torch.testing.assert_close(model.loss(batch), model.base.loss(batch) + extra, rtol=1e-4, atol=1e-4)
    model.loss(batch).backward()
    for table, rows in ((model.residuals, met), (model.graph.centers.table("item"), neighborhood(model, met))):
        assert table.grad is not None
        assert set(table.grad.coalesce().indices()[0].tolist()) == rows


def neighborhood(model: ResEmbedding, met: set[int]) -> set[int]:
    ids = torch.tensor(sorted(met))
    return set(model.graph.slots[ids][model.graph.strength[ids] > 0].tolist())


def test_a_graph_starts_empty_and_is_in_the_state() -> None:
    model, other = res({}), Case("res_embedding").build(fields=FEW)
    assert isinstance(other, ResEmbedding)
    assert (other.graph.strength[:, 1:] == 0).all()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.graph.slots, model.graph.slots)
    assert (other.graph.strength[2:, 1:] > 0).any()
    assert (other.graph.strength[:2, 1:] == 0).all()  # missing and unseen items have no neighbors


# ---- what the graph is drawn from ----------------------------------------------------------------------------------


def log_of(folder: Path, dataset: SyntheticDataset) -> Log:
    from longrec.data import synthetic
    from longrec.data.prepare import prepare
    from longrec.training.job import read_job

    job = dataset.job(synthetic.write(dataset, folder), {"name": "pooling"})
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    read = read_job(job)
    return Log.open(prepare(read.data, read.schema), read.schema)


@pytest.mark.parametrize(
    "split", [{"by": "time", "valid": 0.1, "test": 0.2}, {"by": "user", "valid": 0.1, "test": 0.3}]
)
def test_d_nothing_of_the_test_split_is_in_the_graph(split: dict[str, Any], tmp_path: Path) -> None:
    """The same graph whatever is clicked after the window, and no edge at an item that the window has not."""
    dataset = replace(hidden_categories(40), split=split)
    items = dataset.log["item"].to_numpy()
    training = compute_splits(dataset) == 0
    in_training = np.unique(items[training])[:100]
    vocab = [*np.unique(items).tolist(), 998, 999]
    kept = np.where(training & ~np.isin(items, in_training), in_training[items % 100], items)
    graphs = []
    for name, later in (("one", kept), ("other", np.where(training, kept, 998 + items % 2))):
        log = dataset.log.set_column(dataset.log.column_names.index("item"), "item", pa.array(later))
        schema = {**dataset.schema, "features": {"item": {"kind": "id", "vocab": vocab}}}
        opened = log_of(tmp_path / name, replace(dataset, log=log, schema=schema, items=None))
        model = build({"name": "res_embedding"}, opened.fields())
        assert isinstance(model, ResEmbedding)
        model.fit_statistics(iterate_training_histories(opened))
        graphs.append(model.graph)
    assert torch.equal(graphs[0].slots, graphs[1].slots)
    assert torch.equal(graphs[0].strength, graphs[1].strength)
    strangers = torch.tensor([row for row, item in enumerate(vocab, 2) if item not in in_training])
    edged = graphs[0].strength[:, 1:] > 0
    assert len(strangers) > 100
    assert not edged[strangers].any()
    assert not torch.isin(graphs[0].slots[:, 1:][edged], strangers).any()
    assert edged.sum() > 500


def hidden_categories(users: int) -> SyntheticDataset:
    """The world one_interest where nobody tells the category of an item: only what is clicked together does."""
    dataset = generate_dataset("one_interest", users=users)
    clicks = {"features": ["item"], "where": {"action": "click"}, "max_length": 20}
    return replace(
        dataset, schema={**dataset.schema, "features": {"item": {"kind": "id"}}, "histories": {"clicks": clicks}}
    )


def test_items_of_one_interest_are_learned_from_co_clicks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = hidden_categories(400)
    wide = {"window": 12, "neighbors": 30, "self_weight": 0.1, "penalty": 1.0}
    run = run_in(dataset, {"name": "res_embedding", **POOLING, **wide}, tmp_path, "res")
    actual, bayes_auc = aucs_of(dataset, run)
    assert actual >= dataset.required_auc(bayes_auc)
    model = run.model()
    assert isinstance(model, ResEmbedding)
    assert (model.graph.strength[2:, 1:] > 0).float().mean() > 0.9
    plain, _ = aucs_of(dataset, run_in(dataset, POOLING["base"], tmp_path, "plain"))
    assert plain < actual - 0.08
    monkeypatch.setattr(InterestGraph, "draw", lambda *edges: None)
    without, _ = aucs_of(dataset, run_in(dataset, {"name": "res_embedding", **POOLING, **wide}, tmp_path, "without"))
    assert without < actual - 0.08


# ---- composition, and what does not go -----------------------------------------------------------------------------


def test_it_starts_from_a_run_of_its_base_and_stands_under_others() -> None:
    model, base = res(POOLING), Case("pooling").lively(FEW)
    inherit(model, base, "fit.init_from")
    assert torch.equal(model.residuals, base.embeddings.table("item"))
    over = build({"name": "can", "base": {"name": "res_embedding"}}, FEW)
    assert [
        type(module) for module in over.modules() if isinstance(module, Model) and module.needs_training_window
    ] == [ResEmbedding]
    assert res({}).explain(ragged(5, fields=FEW)).keys() == {"seen"}


def test_the_item_is_inferred_or_named() -> None:
    shop = Field("shop", "id", 9, side="item")
    fields = Fields((Field("user", "id", 9, side="user"), shop, ITEM), {"seen": (GAP, ITEM)})
    assert build({"name": "res_embedding"}, fields).item is ITEM
    with pytest.raises(ConfigError, match="model.item: 'shop' is not an id that a history holds; ids: item"):
        build({"name": "res_embedding", "item": "shop"}, fields)
    both = Fields(fields.features, {"seen": (shop, ITEM)})
    assert build({"name": "res_embedding"}, both).item is ITEM
    assert build({"name": "res_embedding", "item": "shop"}, both).item is shop
    assert build({"name": "res_embedding", "base": {"name": "fm"}}, Fields((shop, ITEM), {})).item is ITEM


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"item": "itm"}, r"model.item: 'itm' is not an id that a history holds; ids: item, rating"),
        ({"item": "rating", "base": {"name": "deepfm"}}, "model.base.name: deepfm holds no vectors of 'rating'"),
        ({"base": {"name": "mmoe"}}, "model.base.name: mmoe holds no vectors of 'item'"),
    ],
)
def test_what_does_not_go_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build({"name": "res_embedding", **settings}, FEW)
    with pytest.raises(ConfigError, match="res_embedding needs an id of the item"):
        build({"name": "res_embedding"}, Fields((Field("user", "id", 9, side="user"),), {}))


def test_chunks_are_read_one_after_the_other() -> None:
    model, read = res(POOLING), 0

    def pieces() -> Iterator[dict[str, HistoryBatch]]:
        nonlocal read
        for seed in range(3):
            read += 1
            yield random_history(seed)

    model.fit_statistics(pieces())
    assert read == 3
    whole = model.graph.strength.clone()
    model.fit_statistics([random_history(2), random_history(0), random_history(1)])
    assert torch.equal(model.graph.strength, whole)


def test_writing_forward_in_time_is_refused_whoever_holds_it() -> None:
    """There is no training window yet from which a graph could be drawn."""
    held = build({"name": "can", "base": {"name": "res_embedding"}}, FEW)
    with pytest.raises(RunError, match="res_embedding, which fits statistics"):
        refuse_training_window(held, "compress")
    refuse_training_window(build({"name": "din"}, FEW), "compress")


def test_centers_reach_the_ranker_below_other_models() -> None:
    """The tables of the ranker are centered, those that a model between them adds are not."""
    model = res({"base": {"name": "can", "base": {"name": "din", "mlp": [8]}, "pairs": [["item", "seen.item"]]}})
    model.fit_statistics([random_history(1)])
    batch = ragged(9, fields=FEW)
    can = model.base
    expected = model.vectors()[batch.candidates["item"].long()]  # type: ignore[union-attr]
    torch.testing.assert_close(can.embed(batch).candidate["item"], expected, rtol=1e-4, atol=1e-5)
    weights = can.weights.table("item")[batch.candidates["item"].long()]  # type: ignore[union-attr]
    assert torch.equal(can.embed(batch).further[can.weights].candidate["item"], weights)
