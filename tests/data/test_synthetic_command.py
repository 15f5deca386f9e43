"""``longrec synthetic``: the list of datasets, their parameters, and files that can be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longrec.cli import main
from longrec.data import synthetic
from longrec.training.job import check


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_datasets_are_listed_with_their_stories(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthetic"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text and synthetic.find_recipe(name).story in text for name in synthetic.list_names())


def test_a_dataset_lists_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthetic", "rich_instances", "--json", "-"]) == 0
    output = json.loads(capsys.readouterr().out)
    about = "number of wide fields, including the informative ones"
    assert output["parameters"]["fields"] == {"default": 60, "about": about}
    assert all(parameter["about"] for parameter in output["parameters"].values())
    assert main(["synthetic", "rich_instances"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{parameter} " in text for parameter in output["parameters"])


@pytest.mark.parametrize("name", synthetic.list_names())
def test_a_dataset_is_written_with_jobs_that_have_no_faults(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["synthetic", name, "--users", "40", "--into", "w"]
    assert main([*arguments, "--json", "found.json"]) == 0
    text, output = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    dataset = synthetic.generate_dataset(name, 40)
    assert pq.read_table("w/log.parquet").equals(dataset.log)
    assert (output["users"], output["events"]) == (40, len(dataset.log))
    assert sorted(output["files"]) == sorted(path.name for path in Path("w").iterdir())
    jobs = [line.split()[-1] for line in text.splitlines() if "longrec train" in line]
    assert len(jobs) == (1 if dataset.wide is None else 2)
    for job in jobs:
        assert check(job).schema.label_column == dataset.schema.get("label")
    if dataset.hit_rates:
        assert output["best_hit_rate"] == {f"hr@{k}": rate for k, rate in dataset.hit_rates.items()}
        assert f"hr@{max(dataset.hit_rates)}" in text
    else:
        assert set(output["bayes_auc"]) == set(dataset.true_probabilities())
        assert all(0.5 <= auc < 1 for auc in output["bayes_auc"].values())
    assert main(arguments) == 0  # a world may be written anew


def test_options_and_overrides_are_the_same(here: Path) -> None:
    arguments = [
        "synthetic",
        "rich_instances",
        "--users",
        "9",
        "--into",
        "a",
        "signal=together",
        "fields=8",
        "--seed",
        "4",
    ]
    assert main(arguments) == 0
    assert (
        main(["synthetic", "rich_instances", "seed=4", "users=9", "signal=together", "--fields=8", "--into", "b"]) == 0
    )
    dataset = synthetic.generate_dataset("rich_instances", 9, 4, signal="together", fields=8)
    for folder in ("a", "b"):
        assert pq.read_table(f"{folder}/log.parquet").equals(dataset.log)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rich_instance"], "did you mean 'rich_instances'?"),
        (["rich_instance", "--into", "w"], "did you mean 'rich_instances'?"),
        (["rich_instances", "--into", "w", "filds=3"], "filds: unknown key; did you mean 'fields'?"),
        (["one_interest", "--into", "w", "--fields", "3"], "fields: unknown key; known: users"),
        (["rich_instances", "--into", "w", "--users", "many"], "users: must be a whole number, got 'many'"),
        (["rich_instances", "--fields", "9"], "--into: is required with parameters"),
    ],
)
def test_what_is_wrong_is_reported(
    arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthetic", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not Path("w").exists()


def test_a_log_of_something_else_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("w").mkdir()
    Path("w/log.parquet").write_text("mine")
    assert main(["synthetic", "one_interest", "--into", "w"]) == 2
    assert "expected a new folder, or the synthetic dataset one_interest to replace" in capsys.readouterr().err
    assert Path("w/log.parquet").read_text() == "mine"


def test_too_few_rows_for_an_auc_are_no_fault(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthetic", "rich_instances", "--into", "w", "users=1", "impressions=3", "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)["bayes_auc"].values()) == {None}
