from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.bottom import Bottom, BottomConfig
from longrec.models.core.catalog import names
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import bce_loss
from longrec.models.core.multi_task import Tasks, join_logits, masked_bce_loss
from longrec.models.core.registry import build
from longrec.testing.batches import FEW, FIELDS, TOKENS, ragged
from longrec.testing.case import Case
from longrec.training.warm_start import inherit

NAN = float("nan")


def bce(logits: Tensor, labels: list[float]) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.tensor(labels, dtype=torch.float32))


def test_the_loss_is_a_weighted_sum_over_labeled_rows() -> None:
    tasks = Tasks({"buy": 0.5, "like": 2.0}, label_weight=3.0)
    assert tasks.names == ("label", "buy", "like")
    assert tasks.targets == ("buy", "like")
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    targets = {"buy": torch.tensor([1.0, NAN, 0.0, NAN]), "like": torch.full((4,), NAN)}
    batch = replace(ragged(4), label=torch.tensor([1.0, 0.0, 1.0, 0.0]), task_labels=targets)
    expected = 3 * bce(logits[:, 0], [1, 0, 1, 0]) + 0.5 * bce(logits[[0, 2], 1], [1, 0])
    torch.testing.assert_close(tasks.loss(logits, batch), expected)
    counted = replace(batch, loss_mask=torch.tensor([True, True, False, False]))
    expected = 3 * bce(logits[:2, 0], [1, 0]) + 0.5 * bce(logits[[0], 1], [1])
    torch.testing.assert_close(tasks.loss(logits, counted), expected)
    assert masked_bce_loss(logits[:, 2], batch, "like") == 0


def test_a_score_joins_probabilities_by_their_exponents() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 3) * 3
    p = logits.sigmoid()
    tasks = Tasks({"buy": 1.0, "like": 1.0}, rank_by={"label": 1.0, "like": 0.5})
    torch.testing.assert_close(tasks.ranking_logit(logits).sigmoid(), p[:, 0] * p[:, 2].sqrt())
    assert torch.equal(Tasks({"buy": 1.0}).ranking_logit(logits), logits[:, 0])
    assert torch.equal(Tasks({"buy": 1.0}, rank_by={"buy": 1.0}).ranking_logit(logits), logits[:, 1])
    squared = Tasks({}, rank_by={"label": 2.0}).ranking_logit(logits)
    torch.testing.assert_close(squared.sigmoid(), p[:, 0] ** 2)
    far = torch.tensor([[90.0, 90.0], [-90.0, -90.0], [90.0, -90.0]])
    actual = join_logits(far, {0: 1.0, 1: 2.0})
    assert actual.isfinite().all()
    torch.testing.assert_close(actual[1:], torch.tensor([-270.0, -180.0]))
    assert actual[0] > 10


def test_exponents_of_unknown_tasks_are_refused_with_all_faults() -> None:
    with pytest.raises(ConfigError) as caught:
        Tasks({"label": 1.0}, rank_by={"like": 1.0, "by": 1.0})
    assert [fault[:28] for fault in caught.value.faults] == [
        "model.rank_by: 'like' is not",
        "model.rank_by: 'by' is not a",
        "model.tasks: label is the sc",
    ]
    with pytest.raises(ConfigError, match=r"model.rank_by.bought: .*greater than 0"):
        build({"name": "mmoe", "tasks": {"bought": 1.0}, "rank_by": {"bought": -1.0}}, FEW)


def test_a_bottom_of_a_base_is_its_hidden_layer_and_its_logit() -> None:
    torch.manual_seed(0)
    bottom = Bottom(BottomConfig(base={"name": "deepfm"}, embedding_dim=8, init_std=0.1), FEW).eval()
    batch = ragged(5, fields=FEW)
    assert bottom.base is not None
    expected = torch.cat([bottom.base.represent(batch), bottom.base(batch).unsqueeze(1)], 1)
    embedded = bottom.embed(batch)
    torch.testing.assert_close(bottom(batch, embedded), expected)
    assert bottom.width == expected.shape[1]
    assert bottom.aux_loss(batch, embedded) == 0


def test_a_bottom_without_a_base_is_all_fields_and_mean_histories() -> None:
    torch.manual_seed(0)
    bottom, batch = Bottom(BottomConfig(embedding_dim=8, init_std=0.1), FEW), ragged(5, fields=FEW)
    embedded = bottom.embed(batch)
    inputs = [embedded.features[field.name] for field in FEW.features]
    offsets = batch.histories["seen"].offsets.tolist()
    for e in embedded.histories["seen"].values():
        rows = [e[start:stop].sum(0) / max(stop - start, 1) for start, stop in zip(offsets, offsets[1:])]
        inputs.append(torch.stack(rows))
    torch.testing.assert_close(bottom(batch, embedded), torch.cat(inputs, 1))


BASES = [{"name": "dien", "hidden": 6}, {"name": "hup", "hidden": 6}, {"name": "res_embedding", "penalty": 5.0}]
KNOWING = Fields(TOKENS.features, {**FEW.histories, **TOKENS.histories})
"""Beside a history of items one of instance tokens, and knowledge."""


@pytest.mark.parametrize("base", BASES, ids=lambda base: base["name"])
@pytest.mark.parametrize("name", ["shared_bottom", "can", "keep_plug", "iat", "iat_reader"])
def test_a_base_keeps_what_it_learns_beside_its_label(
    name: str, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as DIEN: what comes next in a history. Its label is learned once, by the model that stands on it."""
    fields = KNOWING if name in ("keep_plug", "iat_reader") else FEW
    model, batch = Case(name, {"base": base}).lively(fields), ragged(30, fields=fields)
    below = model.bottom.base if name == "shared_bottom" else model.base
    assert isinstance(below, Ranker)
    aux_loss = below.aux_loss
    read: list[Batch] = []
    with monkeypatch.context() as patch:
        patch.setattr(below, "aux_loss", lambda batch, embedded: read.append(batch) or aux_loss(batch, embedded))
        torch.manual_seed(0)  # what did not come next is drawn
        whole = model.loss(batch)
    (inputs,) = read  # computed once
    assert inputs is batch
    embedded = model.embed(batch) if isinstance(model, Ranker) else below.embed(batch)
    below.interact(inputs, embedded)
    torch.manual_seed(0)
    own = below.aux_loss(inputs, embedded)
    assert isinstance(own, Tensor)
    assert own > 0.05
    torch.testing.assert_close(whole, bce_loss(model(batch), batch) + own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "esmm"])
def test_training_goes_on_from_a_run_of_the_base(name: str) -> None:
    base = Case("deepfm").lively(FEW)
    model = build({"name": name, "base": {"name": "deepfm"}}, FEW)
    inherit(model, base, "fit.init_from")
    assert isinstance(model.bottom, Bottom)
    assert isinstance(model.bottom.base, Ranker)
    batch = ragged(9, fields=FEW)
    torch.testing.assert_close(model.bottom.base.eval()(batch), base(batch))
    assert not model.reads_history
    assert model.warm_start_prefix(model) == ""


def test_a_model_of_several_tasks_is_no_base() -> None:
    section = {"name": "keep_plug", "base": {"name": "mmoe", "tasks": {"bought": 1.0}}}
    with pytest.raises(ConfigError, match="model.base: mmoe learns bought beside the label, which no loss would read"):
        build(section, FIELDS)
    assert "several_tasks" not in names()


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "dmt"])
def test_the_score_is_what_rank_by_says(name: str) -> None:
    settings = {"tasks": {"bought": 1.0, "kept": 1.0}, "rank_by": {"label": 1.0, "kept": 0.5}}
    model, batch = Case(name, settings).lively(FEW), ragged(9, fields=FEW)
    with torch.no_grad():
        p = model.logits(batch).sigmoid()
        torch.testing.assert_close(model(batch).sigmoid(), p[:, 0] * p[:, 2] ** 0.5)
        torch.testing.assert_close(model.ranking_logit(model.head(model.represent(batch))), model(batch))
        alone = Case(name, {"tasks": settings["tasks"]}).lively(FEW)
        torch.testing.assert_close(alone(batch), model.logits(batch)[:, 0])
