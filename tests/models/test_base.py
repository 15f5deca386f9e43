from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longrec.errors import ConfigError, UnknownName
from longrec.features.batch import Batch
from longrec.models.core.catalog import describe, names
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import bce_loss
from longrec.models.core.registry import build, find, name_of
from longrec.models.din import DIN
from longrec.models.fm import FM
from longrec.nn.embedding import Embedded
from longrec.testing import Case, check_case
from longrec.testing.batches import FIELDS, ragged

MODEL = '''"""Mine: A model of one weight.

Somebody, here 2026. https://example.org/mine

One weight a value.

Departures from the paper
    - none.

Shapes: B rows.
"""

import torch
from pydantic import Field
from torch import nn

from longrec.config import Strict
from longrec.models.core.kinds import Ranker
from longrec.nn.embedding import Embeddings


class MineConfig(Strict):
    """Settings."""

    scale: float = Field(1.0, description="What the logit is multiplied by.")


class Mine(Ranker):
    """One weight a value."""

    Config = MineConfig

    def __init__(self, config, fields):
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, width=1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        vectors = self.embeddings(batch).features.values()
        return self.bias + self.config.scale * torch.cat(list(vectors), 1).sum(1)

    def output_biases(self):
        return [self.bias]
'''


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    package = folder / "my_team"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in ("my_team", "my_team.mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_folder_is_the_registry() -> None:
    assert {"dcn", "deepfm", "din", "fm", "lr", "pooling", "wide_deep"} <= set(names())
    assert not {"base", "artifact", "catalog"} & set(names())
    assert find("din") is DIN
    assert name_of(build({"name": "din"}, FIELDS)) == "din"


@pytest.mark.parametrize("name", ["dinn", "base", "no.such.module", "longrec.models.nothing", ""])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match="no model named"):
        find(name)
    with pytest.raises(UnknownName, match="no model named"):
        describe(name)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UnknownName, match="did you mean 'din'"):
        build({"name": "dinn"}, FIELDS)


@pytest.mark.parametrize("section", [{}, {"name": 3}])
def test_a_section_without_a_name_is_refused(section: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: is required"):
        build(section, FIELDS, where="my.yaml")


def test_all_faults_of_a_section_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"name": "din", "dropout": 2, "atention": [3], "softmax": "maybe"}, FIELDS, where="my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: 3 faults")
    for fault in ("model.dropout", "model.atention: unknown key; did you mean 'attention'?", "model.softmax"):
        assert fault in text


def test_a_model_of_a_stranger_passes_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch, MODEL)
    case = Case("my_team.mine", {"scale": 2.0})
    model = case.build()
    assert name_of(model) == "my_team.mine"
    assert describe("my_team.mine").title == "A model of one weight"
    check_case(case)


def test_a_module_defines_exactly_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch, MODEL + MODEL[MODEL.index("class Mine(Ranker)") :].replace("Mine(", "Other("))
    for look in (find, describe):
        with pytest.raises(ConfigError, match="must define exactly one .*model, found Mine, Other"):
            look("my_team.mine")


def test_an_import_that_fails_inside_a_model_is_not_an_unknown_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, monkeypatch, "import no_such_package\n" + MODEL)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        find("my_team.mine")


def test_the_loss_is_the_mean_bce() -> None:
    model, batch = build({"name": "lr"}, FIELDS), ragged(5)
    assert model.loss(batch).item() == pytest.approx(torch.tensor(2.0).log().item())
    model = Case("fm").lively()
    p, y = model(batch).sigmoid(), batch.label
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(model.loss(batch), expected)


def test_a_batch_without_labels_has_no_loss() -> None:
    with pytest.raises(ValueError, match="no label"):
        build({"name": "lr"}, FIELDS).loss(replace(ragged(2), label=None))


def test_a_ranker_explains_nothing_by_default() -> None:
    assert build({"name": "lr"}, FIELDS).explain(ragged(2)) == {}


@pytest.mark.parametrize("name", ["lr", "fm", "fnn", "din", "mmoe", "multi_tower"])
def test_a_score_is_the_head_of_the_interaction_of_what_is_looked_up(name: str) -> None:
    model, batch = Case(name).lively(), ragged(9)
    assert isinstance(model, Ranker)
    h_CH = model.interact(batch, model.embed(batch))
    assert h_CH.shape == (9, model.interaction_width)
    assert torch.equal(model.represent(batch), h_CH)
    logits_CK = model.head(h_CH)
    assert logits_CK.shape == (9, 1)
    assert torch.equal(model.logits(batch), logits_CK)
    assert torch.equal(model(batch), model.ranking_logit(logits_CK))


def test_a_loss_looks_up_once_and_adds_the_auxiliary_loss_of_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = Case("fm").lively(), ragged(9)
    assert isinstance(model, Ranker)
    expected = bce_loss(model(batch), batch) + 3
    looked_up: list[Embedded] = []
    embed, interact = model.embed, model.interact

    def keep(batch: Batch) -> Embedded:
        looked_up.append(embed(batch))
        return looked_up[-1]

    def leave(batch: Batch, embedded: Embedded) -> Tensor:
        embedded.states["left"] = torch.tensor(3.0)
        return interact(batch, embedded)

    monkeypatch.setattr(model, "embed", keep)
    monkeypatch.setattr(model, "interact", leave)
    monkeypatch.setattr(model, "aux_loss", lambda batch, embedded: embedded.states["left"])
    torch.testing.assert_close(model.loss(batch), expected)
    assert len(looked_up) == 1


def test_the_vectors_of_further_tables_are_kept_by_their_module() -> None:
    model, batch = Case("fm").lively(), ragged(9)
    assert isinstance(model, FM)
    embedded = model.embed(batch)
    assert list(embedded.further) == [model.first_order]
    weights = model.first_order(batch).features
    assert all(torch.equal(embedded.further[model.first_order].features[name], w) for name, w in weights.items())
    assert Case("din").lively().embed(batch).further == {}
