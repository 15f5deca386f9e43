from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longrec.errors import ConfigError, ResourceError, RunError
from longrec.models.core import artifact
from longrec.testing.batches import FIELDS, ragged
from longrec.testing.case import Case


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    artifact.save(Case("din", {"softmax": True}).lively(), tmp_path / "model")
    return tmp_path / "model"


def test_three_files_and_nothing_else(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["fields.json", "model.json", "weights.safetensors"]
    about = json.loads((saved / "model.json").read_text())
    assert (about["format"], about["name"], about["config"]["softmax"]) == (1, "din", True)


def test_saving_again_replaces(saved: Path) -> None:
    model = Case("lr").lively()
    artifact.save(model, saved)
    again = artifact.load(saved)
    assert torch.equal(again(ragged(3)), model(ragged(3)))


def test_fields_round_trip() -> None:
    assert artifact.fields_from_json(json.loads(json.dumps(artifact.fields_to_json(FIELDS)))) == FIELDS


@pytest.mark.parametrize("name", ["fields.json", "model.json", "weights.safetensors"])
def test_a_missing_or_broken_file_is_reported(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=name):
        artifact.load(saved)
    (saved / name).unlink()
    with pytest.raises(RunError, match=name):
        artifact.load(saved)


def test_another_format_is_refused(saved: Path) -> None:
    about = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(RunError, match="format 2; expected format 1"):
        artifact.load(saved)


def test_settings_the_model_no_longer_takes_are_reported(saved: Path) -> None:
    about = json.loads((saved / "model.json").read_text())
    about["config"]["sofmax"] = about["config"].pop("softmax")
    (saved / "model.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=r"config\.sofmax: unknown key; did you mean 'softmax'"):
        artifact.load(saved)


@pytest.mark.parametrize("content", [[], {"features": 3}, {"features": [{"nme": 1}], "histories": {}}])
def test_invalid_fields_are_reported(saved: Path, content: object) -> None:
    (saved / "fields.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"fields\.json"):
        artifact.load(saved)


def test_weights_of_another_model_are_reported(saved: Path) -> None:
    about = json.loads((saved / "model.json").read_text())
    about["config"]["attention"] = [7]
    (saved / "model.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"weights\.safetensors.*expected the weights of din"):
        artifact.load(saved)


def test_weights_beyond_the_memory_there_is(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longrec.resources.available_memory", lambda: 100)
    with pytest.raises(
        ResourceError, match=r"weights.safetensors: weights of .* kB; expected at most the 100 B of memory"
    ):
        artifact.load(saved)
