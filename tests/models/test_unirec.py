"""UniRec: its equations by hand, the task, summaries, search, servable items, hits of tokens and items, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from table_reads import record_reads
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch, Targets
from longrec.features.fields import Field, Fields
from longrec.models.core.generator import FLOOR, split_requests
from longrec.models.core.registry import build
from longrec.models.unirec import UniRec
from longrec.testing.batches import CATEGORY, CODES, ITEM, PATHS, pick, ragged, take
from longrec.testing.pretend_device import DEVICE, PretendDevice, move_model
from longrec.testing.target_batches import catalog, with_targets

SMALL: dict[str, Any] = {"name": "unirec", "embedding_dim": 8, "heads": 2, "layers": 1, "hidden": 6, "experts": 2}
FULL: dict[str, Any] = {**SMALL, "attributes": ["category"], "tasks": ["user"], "positions": 3, "summary_width": 2}
TIGER: dict[str, Any] = {
    **{**SMALL, "pairs": [], "head": "linear", "self_attention": True, "encoder_layers": 2, "experts": 1},
    **{"static": False, "code_events": "join"},
}


def make(settings: dict[str, Any] = FULL, fields: Fields = PATHS, **more: Any) -> UniRec:
    torch.manual_seed(0)
    model = build({**settings, **more}, fields)
    assert isinstance(model, UniRec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def rms(x: Tensor, norm: Any) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def by_hand(model: UniRec, batch: Batch, row: int, path: list[int]) -> list[Tensor]:
    """The logits of every step of one path for one request, written as in the paper's notation."""
    table = model.embeddings.table
    own = take(batch, [row])
    columns = own.histories["seen"].columns
    e = {name: table(name)[columns[name]] for name in ("rating", "item", "category", "code_1", "code_2", "code_3")}
    of, n = model.events, len(columns["item"])  # type: ignore[arg-type]
    h = of.event_map(rms(torch.cat([e["rating"], e["item"], e["category"]], 1), of.event_norm))  # type: ignore[misc]
    g = rms(of.code_map(torch.cat([e["code_1"], e["code_2"], e["code_3"]], 1)), of.code_norm)  # type: ignore[misc]
    user, taste = own.features["user"], own.features["taste"]
    static = rms(torch.cat([table("user")[user], taste @ table("taste")], 1), model.static_norm)  # type: ignore[index,operator]
    aggregate = rms(torch.cat([static, torch.cat([h, g]).mean(0, keepdim=True)], 1), model.aggregate_norm)
    positions = torch.stack([of.positions[min(n - 1 - j, 2)] for j in range(n)])  # type: ignore[index]
    k, v = of.keys(torch.cat([h + positions, g + positions])).chunk(2, 1)
    names, logits, heads = [field.name for field in model.path], [], model.heads
    assert heads is not None
    for step in range(len(path)):
        if step:
            x = table(names[step - 1])[path[step - 1]]
        else:
            x = model.start + model.tasks.table("user")[user][0]  # type: ignore[index]
        x = x + model.step_embedding[step]
        layer: Any = model.decoder.layers[0]
        q, o = layer.query(rms(x, layer.norm).unsqueeze(0))[0], torch.zeros(8)
        for head in (slice(0, 4), slice(4, 8)):
            o[head] = (k[:, head] @ q[head] / math.sqrt(4)).softmax(0) @ v[:, head]
        x = x + layer.gamma * layer.outer(o.unsqueeze(0))[0]
        z, network = rms(x, layer.expert_norm), layer.network
        w1, w3 = network.inner.weight.view(2, 2, 6, 8)
        gates = (z @ network.gate[step]).softmax(0)
        each = [network.outer.weight[:, 6 * at : 6 * at + 6] @ (F.silu(w1[at] @ z) * (w3[at] @ z)) for at in (0, 1)]
        q_t = rms(x + gates[0] * each[0] + gates[1] * each[1], model.decoder.norm)
        groups = [q_t]
        if step:
            groups.append(rms(sum(table(names[s])[path[s]] for s in range(step)), heads.prefix_norm))  # type: ignore[arg-type]
        for pair, (first, second) in enumerate([(0, 1), (0, 2), (1, 2)]):
            if second < step:
                assert heads.summary is not None
                rows = heads.summary.hash(pair, torch.tensor([path[first]]), torch.tensor([path[second]]))
                groups.append(rms(heads.summary.embeddings.table("summary")[rows[0]].flatten(), heads.summary_norm))
        groups.append(aggregate[0])
        logits.append(heads.steps[step]([x.unsqueeze(0) for x in groups])[0])
    return logits


def test_the_equations() -> None:
    model, batch = make(), ragged(4, fields=PATHS, lengths=[3, 1, 5, 2])
    assert model.pairs == [(0, 1), (0, 2), (1, 2)]
    path = [3, 2, 0, 4]
    with torch.no_grad():
        memory = model.encode(batch)
        for row in range(4):
            for step, expected in enumerate(by_hand(model, batch, row, path)):
                actual = model.step(memory, torch.tensor([path[:step]]))[row, 0]
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_as_one_by_one() -> None:
    """Histories of any lengths, also without events: no padding reaches a score, and no other request."""
    for settings in (FULL, TIGER):
        model, batch, items = make(settings), ragged(15, longest=30, fields=PATHS), catalog(PATHS)
        with torch.no_grad():
            together = model.score_catalog(batch, items)
            alone = torch.cat([model.score_catalog(take(batch, [row]), items) for row in range(15)])
            split = torch.cat([model.score_catalog(some, items) for some in split_requests(batch, 7)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together, split, rtol=1e-4, atol=1e-4)


def test_one_lookup_per_table_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stored event is embedded once, however many targets read it."""
    model, reads = make().train(), record_reads(monkeypatch)
    batch = with_targets(model.sampling, 40, fields=PATHS)
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    assert batch.targets is not None
    events, items = int(batch.histories["seen"].offsets[-1]), len(batch.targets.rows)
    assert reads[id(model.embeddings.table("item"))] == [events]
    assert reads[id(model.embeddings.table("code_1"))] == [events + items]
    assert all(len(counts) == 1 for counts in reads.values())


# ---- the tests of the paper's notes --------------------------------------------------------------------------------


def _with_paths(batch: Batch, model: UniRec, paths: Tensor) -> Batch:
    """The batch with one candidate per target, which has a path."""
    targets = batch.targets
    assert targets is not None
    columns = {field.name: paths[:, step].int() for step, field in enumerate(model.path)}
    columns["item"] = torch.zeros(len(paths), dtype=torch.int32)
    rows = torch.arange(len(paths))
    return replace(batch, candidates=columns, targets=replace(targets, item=rows, rows=rows))


def test_a_summary_reads_earlier_tokens_alone_and_is_reordered_with_its_beam() -> None:
    """With caches or without: what a narrow beam returns has the log-probability of its path under teacher forcing."""
    for settings in (FULL, TIGER):
        model, items = make(settings), catalog(PATHS)
        batch = with_targets(model.sampling, 9, fields=PATHS, per_position=False)
        trie = model.build_trie(items)
        with torch.no_grad():
            generated = model.generate(batch, trie, 6, width=3)
            for rank in range(3):
                paths = model.stack_tokens(items)[torch.from_numpy(generated.items[:, rank])]
                expected = model.log_probabilities(_with_paths(batch, model, paths)).sum(1)
                torch.testing.assert_close(torch.from_numpy(generated.scores[:, rank]), expected, rtol=0, atol=1e-5)


def test_probabilities_of_all_servable_paths_add_up_to_one_if_renormalized() -> None:
    items, batch = catalog(PATHS), ragged(5, fields=PATHS)
    for settings in (FULL, TIGER):
        for renormalize in (False, True):
            model = make(settings, search="exact", renormalize=renormalize)
            trie = model.build_trie(items)
            with torch.no_grad():
                scores = model.score_catalog(batch, items)[:, trie.items[trie.leaf_starts[:-1]]]
            total = scores.exp().sum(1)
            assert torch.allclose(total, torch.ones(5), atol=1e-4) if renormalize else bool((total < 0.999).all())


def test_the_task_changes_the_outputs_and_an_unseen_one_falls_back() -> None:
    model, batch, items = make(static=False), ragged(6, fields=PATHS), catalog(PATHS)

    def score(users: int) -> Tensor:
        column = torch.full((6,), users, dtype=torch.int32)
        with torch.no_grad():
            return model.score_catalog(replace(batch, candidates={**batch.candidates, "user": column}), items)

    assert not torch.allclose(score(5), score(6), atol=1e-3)
    torch.manual_seed(0)
    fresh = build({**FULL, "static": False}, PATHS)
    assert isinstance(fresh, UniRec)
    assert not fresh.tasks.table("user")[:2].any()  # missing and unseen tasks begin as no task, and stay so untrained
    assert torch.equal(score(1), score(1))


def test_items_are_generated_from_their_paths_with_twins_and_without_items_that_have_no_codes() -> None:
    model, items = make(), catalog(PATHS)
    twin = {name: pick(column, [*range(60), 7, 7]) for name, column in items.items()}
    code = twin["code_2"]
    assert isinstance(code, Tensor)
    code[9] = 0
    trie, batch = model.build_trie(twin), ragged(5, fields=PATHS)
    tokens = model.stack_tokens(twin)
    assert trie.paths.tolist() == tokens[trie.items].tolist()
    with_codes = (tokens[:, 1:] != 0).all(1).nonzero().squeeze(1).tolist()
    assert sorted(trie.items.tolist()) == with_codes
    assert 9 not in with_codes
    kept = trie.remove(np.array([11, 12]))
    with torch.no_grad():
        generated = model.generate(batch, kept, 62, width=1_000)
        scores = model.score_catalog(batch, twin)
    for row, listed in enumerate(generated.items.tolist()):
        assert sorted(item for item in listed if item >= 0) == sorted(set(with_codes) - {11, 12})
        if 7 in listed:
            assert sorted(listed[listed.index(7) :][:3]) == [7, 60, 61]
        assert scores[row, 7] == scores[row, 60] == scores[row, 61]
        assert scores[row, 9] == FLOOR


def test_hits_of_tokens_and_hits_of_items_are_two_numbers() -> None:
    """All tokens of a target may be hits where its item is none: it has a twin, or a beam left it out."""
    model, items = make(), catalog(PATHS)
    batch = with_targets(model.sampling, 30, fields=PATHS, per_position=False)
    with torch.no_grad():
        hits = model.token_hits(batch, 3)
        every = model.token_hits(batch, 99)
        best = model.token_hits(batch, 1)
        tokens, logits = model.target_tokens(batch), model.target_logits(batch)
    assert bool(every.all())
    assert bool((best <= hits).all())
    for step in range(4):
        rank = (logits[step] > logits[step].gather(1, tokens[:, step : step + 1])).sum(1)
        assert torch.equal(hits[:, step], rank < 3)
    twins = {name: pick(column, [5] * 4) for name, column in items.items()}
    code = twins["code_1"]
    assert isinstance(code, Tensor)
    code[:] = twins["code_2"][:] = twins["code_3"][:] = 2  # type: ignore[index]
    with torch.no_grad():
        scores = model.score_catalog(batch, twins)
    assert bool((scores == scores[:, :1]).all())  # a hit of the path is a hit of one of four items, by chance


def test_a_narrow_beam_ranks_the_same_items_as_exact_scoring() -> None:
    """The candidate universe is the catalog in both: items that the beam did not reach tie below all others."""
    batch, items = ragged(8, fields=PATHS), catalog(PATHS)
    exact, beam = make(search="exact"), make(search="beam", beam_width=4)
    with torch.no_grad():
        one, other = exact.score_catalog(batch, items), beam.score_catalog(batch, items)
    reached = other > FLOOR
    assert one.shape == other.shape
    assert bool((reached.sum(1) >= 4).all())
    assert bool((reached.sum(1) < 20).all())
    torch.testing.assert_close(other[reached], one[reached], rtol=1e-4, atol=1e-4)
    assert bool(other[~reached].eq(FLOOR).all())


@pytest.mark.parametrize("settings", [FULL, TIGER])
@pytest.mark.parametrize("search", ["exact", "beam"])
def test_a_search_on_another_device(settings: dict[str, Any], search: str) -> None:
    model, batch, items = make(settings, search=search, beam_width=4), ragged(8, fields=PATHS), catalog(PATHS)
    with torch.no_grad():
        expected = model.score_catalog(batch, items)
        with PretendDevice():
            move_model(model)
            columns = {name: column.to(DEVICE) for name, column in items.items()}  # type: ignore[union-attr]
            actual = model.score_catalog(batch.to(DEVICE), columns).cpu()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ---- settings ------------------------------------------------------------------------------------------------------


def test_a_correction_subtracts_the_probability_of_the_attributes_without_a_task() -> None:
    plain, corrected = make(search="exact"), make(search="exact", correction=0.5)
    batch, items = ragged(5, fields=PATHS), catalog(PATHS)
    without = torch.zeros(5, dtype=torch.int32)
    null = replace(batch, candidates={**batch.candidates, "user": without})
    with torch.no_grad():
        attributes = plain.step(plain.encode(null), torch.zeros(1, 0, dtype=torch.int64)).log_softmax(2)[:, 0]
        actual, base = corrected.score_catalog(batch, items), plain.score_catalog(batch, items)
    expected = base - 0.5 * attributes[:, items["category"].long()]  # type: ignore[union-attr]
    servable = base[0] > FLOOR
    torch.testing.assert_close(actual[:, servable], expected[:, servable], rtol=1e-4, atol=1e-4)


def test_a_task_is_dropped_for_a_share_of_the_targets() -> None:
    model = make(task_dropout=0.5, static=False, dropout=0.0).train()
    batch = with_targets(model.sampling, 200, fields=PATHS, per_position=False)
    without = {**batch.requests, "user": torch.zeros_like(batch.requests["user"])}  # type: ignore[arg-type]
    with torch.no_grad():
        model.eval()
        with_task, no_task = model.target_logits(batch)[0], model.target_logits(replace(batch, requests=without))[0]
        model.train()
        actual = model.target_logits(batch)[0]
    kept = torch.isclose(actual, with_task, atol=1e-4).all(1)
    assert bool((kept | torch.isclose(actual, no_task, atol=1e-4).all(1)).all())
    assert 0.3 < float(kept.float().mean()) < 0.7


def test_targets_of_sequences_have_the_loss_of_requests() -> None:
    model = make(TIGER)
    batch = with_targets(model.sampling, 7, fields=PATHS)
    assert batch.targets is not None
    bounds = batch.histories["seen"].offsets
    owner = torch.searchsorted(bounds, batch.targets.state, right=True) - 1
    rows = [torch.arange(int(bounds[r]), int(s) + 1) for r, s in zip(owner, batch.targets.state)]
    events = batch.histories["seen"].columns
    joined = replace(
        batch.histories["seen"],
        columns={name: pick(column, torch.cat(rows)) for name, column in events.items()},
        offsets=torch.tensor([0, *[len(row) for row in rows]]).cumsum(0),
    )
    targets: Targets = replace(batch.targets, state=torch.arange(len(rows)), per_position=False, requests=None)
    other = replace(
        batch, layout=replace(batch.layout, requests=len(rows)), histories={"seen": joined}, targets=targets
    )
    with torch.no_grad():
        torch.testing.assert_close(model.log_probabilities(batch), model.log_probabilities(other), rtol=1e-4, atol=1e-5)


def test_targets_without_codes_add_nothing() -> None:
    model = make()
    batch = with_targets(model.sampling, 9, fields=PATHS, per_position=False)
    columns = {name: torch.zeros_like(column) for name, column in batch.candidates.items()}  # type: ignore[arg-type]
    assert model.loss(replace(batch, candidates=columns)) == 0
    with pytest.raises(ValueError, match="targets"):
        model.loss(replace(batch, targets=None))


def test_all_faults_are_reported_together() -> None:
    settings = {
        **{**SMALL, "heads": 3, "attributes": ["brand", "category"], "codes": ["code_1", "genres"]},
        **{"tasks": ["item"], "pairs": [["category", "genres"]]},
    }
    fields = Fields((*PATHS.features, Field("genres", "multi_id", 9, side="item")), PATHS.histories)
    with pytest.raises(ConfigError) as error:
        build(settings, fields)
    text = str(error.value)
    assert "5 faults" in text
    assert "model.attributes: 'brand' is no id feature of the item, which are: item, category, code_1" in text
    assert "model.codes: 'genres' is no id feature" in text
    assert "model.heads: 3 heads do not divide a width of 8" in text
    assert "model.tasks: 'item' is no id feature of the user or the context, which are: user" in text
    assert "model.pairs: [category, genres] must be two of brand, category, code_1" in text


@pytest.mark.parametrize(
    ("settings", "fields", "message"),
    [
        ({}, Fields((ITEM,), {"seen": (ITEM,)}), "model.codes: unirec needs the codes of items as code_1"),
        ({}, Fields((ITEM, *CODES), {"seen": (Field("rating", "id", 8),)}), "histories.seen.features: has no id"),
        ({}, Fields((ITEM, *CODES), {}), "unirec reads a history"),
        ({"codes": ["code_1", "code_1"]}, PATHS, "code_1 is in the path twice"),
        ({"correction": 1.0}, PATHS, "model.correction: needs tasks"),
        ({"correction": 1.0, "tasks": ["user"]}, PATHS, "model.correction: needs attributes"),
        ({"task_dropout": 0.1}, PATHS, "model.task_dropout: needs tasks"),
        ({"pairs": [["code_1", "code_3"]]}, PATHS, "before the last token"),
    ],
)
def test_settings_are_refused(settings: dict[str, Any], fields: Fields, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({**SMALL, **settings}, fields)


def test_a_path_of_one_token() -> None:
    fields = Fields((ITEM, CATEGORY, CODES[0]), {"seen": (ITEM, CATEGORY)})
    for settings in (SMALL, {**TIGER, "encoder_layers": 0}):
        model = make(settings, fields)
        batch = with_targets(model.sampling, 9, fields=fields)
        assert model.loss(batch).isfinite()
        with torch.no_grad():
            assert model.score_catalog(ragged(3, fields=fields), catalog(fields)).isfinite().all()
