"""Tests of the command line: exit codes, messages of one screen, JSON output, and no trace for errors of users."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longrec
from longrec import cli, commands
from longrec.cli import main

SCHEMA = """
user: user
item: item
time: {column: time, unit: step}
label: click
features:
  user: {kind: id}
  item: {kind: id}
  price: {kind: numeric, scale: log, side: context}
histories:
  seen: {features: [item], max_length: 5}
"""
CONFIG = """
name: one
data: {schema: shop.schema.yaml, log: events.parquet, folder: prepared}
model: {name: din, attention: [4], mlp: [8]}
fit: {epochs: 1, batch_size: 64, runs: runs}
"""


def events(rows: int = 400) -> dict[str, object]:
    random = np.random.default_rng(1)
    item = random.integers(0, 12, rows)
    return {
        "user": random.integers(0, 20, rows),
        "item": item,
        "time": np.arange(rows),
        "price": random.random(rows) * 9,
        "click": (random.random(rows) < 0.2 + 0.05 * item).astype(np.int64),
    }


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.schema.yaml").write_text(SCHEMA)
    (tmp_path / "din.yaml").write_text(CONFIG)
    write(tmp_path, **events())
    return tmp_path


def write(folder: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), folder / "events.parquet")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of a refusal: exit 2, on standard error, one screen, no trace."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("\n") <= 24
    return said.err


def test_a_whole_session(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "din.yaml"]) == 0
    assert "no faults" in capsys.readouterr().out
    assert main(["prepare", "din.yaml", "--json", "prepared.json"]) == 0
    assert json.loads(Path("prepared.json").read_text())["events"] == 400
    capsys.readouterr()
    assert main(["train", "din.yaml", "--quiet", "--json", "-"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert Path(trained["run"]) == shop / "runs" / "one"
    assert {"auc", "gauc", "log_loss", "normalized_entropy", "pcoc", "ece"} <= set(trained["metrics"])
    assert main(["export", "runs/one", "one.bundle"]) == 0
    with longrec.client("one.bundle") as client:
        ranked = client.rank(user=3, candidates=[1, 2, 3], at=400, context={"price": 2.0})
    assert sorted(item.id for item in ranked) == [1, 2, 3]

    # the prepared log is shared with a run of other history lengths, whose bundle must keep its own
    assert main(["train", "din.yaml", "name=two", "data.schema.histories.seen.max_length=2", "--quiet"]) == 0
    assert len(list((shop / "prepared").glob("*/log.json"))) == 1
    assert main(["export", "runs/two", "two.bundle"]) == 0


def test_json_on_standard_output_is_json_alone(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "-"]) == 0
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert listed["din"]["reads_history"] is True
    assert listed["deepfm"]["reads_history"] is False
    assert main(["check", "din.yaml", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "din"


CHECK = """
import sys
from longrec.cli import main
code = main(["check", "din.yaml", *sys.argv[1:]])
imported = [name for name in ("torch", "pandas", "pyarrow.dataset", "sympy") if name in sys.modules]
print(code, *imported)
"""


@pytest.mark.parametrize(
    ("overrides", "end", "says"),
    [
        ((), "0", "no faults"),
        (("model={name: sasrec, layrs: 2}", "fit.epoch=3"), "2", "did you mean 'layers'?"),
    ],
    ids=["without faults", "with faults"],
)
def test_check_imports_no_torch(shop: Path, overrides: tuple[str, ...], end: str, says: str) -> None:
    done = subprocess.run([sys.executable, "-c", CHECK, *overrides], capture_output=True, text=True, timeout=60)
    last = done.stdout.splitlines()[-1]
    assert last == end, done.stderr
    assert says in done.stdout + done.stderr


def test_all_faults_of_a_config_at_once(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(
        capsys, "check", "din.yaml", "model.atention=[3]", "fit.epochs=two", "data.split.by=tme", "fit.sede=1"
    )
    assert "4 faults" in said
    assert "model.atention: unknown key; did you mean 'attention'?" in said
    assert "fit.epochs: must be a whole number, got 'two'" in said
    assert "fit.sede: unknown key; did you mean 'seed'?" in said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"price": None}, "no column 'price'"),
        ({"price": ["cheap"] * 400}, "'cheap'"),
        ({"user": [None, *range(399)]}, "1 null value"),
        ({"time": [None, *range(399)]}, "1 null value"),
        ({"click": [0] * 400}, "every training label is 0"),
        ({"item": [float(2**53 + 2)] * 400}, "floats"),
    ],
)
def test_bad_logs(shop: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], expected: str) -> None:
    columns = {**events(), **change}
    write(shop, **{name: values for name, values in columns.items() if values is not None})
    assert expected in refused(capsys, "train", "din.yaml")
    assert not (shop / "runs").exists() or not list((shop / "runs").iterdir())
    assert not list((shop / "prepared").iterdir())


def test_mixed_times_an_empty_log_and_a_truncated_file(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = np.where(np.arange(400) % 2, 1_700_000_000, 1_700_000_000_000)
    write(shop, **{**events(), "time": seconds})
    assert "mixed units" in refused(capsys, "prepare", "din.yaml", "data.schema.time.unit=auto")
    write(shop, **{name: values[:0] for name, values in events().items()})  # type: ignore[index]
    assert "no rows" in refused(capsys, "prepare", "din.yaml")
    write(shop, **events())
    whole = (shop / "events.parquet").read_bytes()
    (shop / "events.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refused(capsys, "prepare", "din.yaml")


def test_things_that_are_not_there(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command named 'trian'; did you mean 'train'?" in refused(capsys, "trian", "din.yaml")
    assert "no such file" in refused(capsys, "check", "dinn.yaml")
    assert "did you mean 'din'" in refused(capsys, "help", "dinn")
    refused(capsys, "evaluate", "runs/none")
    refused(capsys, "serve", "none.bundle")
    refused(capsys, "compare", "runs/none")


def test_a_fault_of_our_own_keeps_its_trace(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(commands, "check", broken)
    assert main(["check", "din.yaml"]) == 1
    said = capsys.readouterr().err
    assert "out of ideas" in said
    trace = Path(next(word for word in said.split() if word.endswith(".txt;")).rstrip(";"))
    assert "RuntimeError" in trace.read_text()
    trace.unlink()


def test_help_lists_all_commands() -> None:
    text = cli.build_parser().format_help()
    names = "check prepare train compress encode evaluate predict compare export serve models help cite synthetic demo"
    assert all(f"    {name}" in text for name in names.split())


FORMER_NAMES = [
    (["evaluate", "runs/a", "--part", "valid"], ["--part is called --split; write --split valid"]),
    (["predict", "runs/a", "--part=valid"], ["--part is called --split; write --split valid"]),
    (
        ["compare", "runs/a", "runs/b", "--part", "valid", "--unit", "row", "--replicates=9"],
        [
            "--part is called --split; write --split valid",
            "--unit is called --resample; write --resample row",
            "--replicates is called --n-resamples; write --n-resamples 9",
        ],
    ),
    (["evaluate", "runs/a", "--part"], ["--part is called --split; write --split"]),
    (["worlds"], ["longrec worlds is called longrec synthetic; write longrec synthetic"]),
    (
        ["worlds", "rich_instances", "--tell", "last"],
        [
            "longrec worlds is called longrec synthetic; write longrec synthetic rich_instances",
            "--tell is called --signal; write --signal last",
        ],
    ),
]


@pytest.mark.parametrize(("arguments", "faults"), FORMER_NAMES, ids=lambda value: " ".join(value))
def test_former_names_are_refused_together(
    capsys: pytest.CaptureFixture[str], arguments: list[str], faults: list[str]
) -> None:
    message = refused(capsys, *arguments).splitlines()
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    assert message == [f"longrec: ConfigError: command line: {count}", *(f"  {fault}" for fault in faults)]


def test_compress_and_encode_refuse_the_models_of_each_other(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "keep.yaml").write_text(CONFIG.replace("{name: din, attention: [4], mlp: [8]}", "keep"))
    message = refused(capsys, "compress", "keep.yaml", "--into", "tokens/v1")
    assert "Write its knowledge: longrec encode keep.yaml --into knowledge/v1" in message
    message = refused(capsys, "encode", "din.yaml", "--into", "knowledge/v1")
    assert "longrec compress din.yaml --into tokens/v1" in message
    assert not (shop / "tokens").exists()
    assert not (shop / "knowledge").exists()


def test_public_names() -> None:
    assert dir(longrec) == sorted([*longrec.__all__, "__version__"])
    for name in longrec.__all__:
        value = getattr(longrec, name)
        assert callable(value) or value.__name__ == f"longrec.{name}", name


def test_the_package_runs_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["longrec", "--version"])
    with pytest.raises(SystemExit) as raised:
        runpy.run_module("longrec", run_name="__main__")
    assert raised.value.code in (0, None)
    assert capsys.readouterr().out == f"longrec {longrec.__version__}\n"
