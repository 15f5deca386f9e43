"""``longrec diagnose`` on folders and tables, and ``longrec.diagnose`` on frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import longrec
from longrec.cli import main
from longrec.errors import ConfigError, DataError
from longrec.semantic_ids.diagnostics.diagnosis import QUANTIZED, UNQUANTIZED
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.stored import SemanticIds

ITEMS, SIZE = 300, 8


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw_vectors() -> Any:
    random = np.random.default_rng(0)
    return random.normal(size=(20, 16))[np.arange(ITEMS) % 20] + random.normal(0, 0.5, (ITEMS, 16))


def draw_log() -> pa.Table:
    """Events of users who stay within a group of items, on two days, the second of which is test."""
    random = np.random.default_rng(1)
    user = np.repeat(np.arange(80), 10)
    item = (user % 20) + 20 * random.integers(0, ITEMS // 20, len(user))
    time = 1_700_000_000 + 86_400 * (np.arange(len(user)) % 10 >= 8) + np.arange(len(user)) % 10
    split = np.where(np.arange(len(user)) % 10 >= 8, "test", "train")
    return pa.table({"user_id": user, "item_id": item.astype(np.int32), "timestamp": time, "split": split})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tokenizer, its vectors and a log."""
    folder = tmp_path_factory.mktemp("tokens")
    x = torch.from_numpy(draw_vectors().astype(np.float32))
    tokenizer = build_tokenizer({"name": "rq_kmeans", "levels": 3, "size": SIZE, "iterations": 4})
    codes = tokenizer.fit(x, seed=0).codes.numpy()
    keys = pa.array(np.arange(ITEMS))
    SemanticIds.build(keys, codes, tokenizer, {}, "item_id").write(folder / "one")
    again = build_tokenizer({"name": "rq_kmeans", "levels": 3, "size": SIZE, "iterations": 4})
    SemanticIds.build(keys, again.fit(x, seed=1).codes.numpy(), again, {}, "item_id").write(folder / "two")
    order = np.random.default_rng(3).permutation(ITEMS)
    vectors = {"item_id": keys.to_numpy()[order], "embedding": list(draw_vectors()[order].astype(np.float32))}
    pq.write_table(pa.table(vectors), folder / "vectors.parquet")
    pq.write_table(draw_log(), folder / "log.parquet")
    return folder


def options(folder: Path) -> dict[str, Path]:
    return {"vectors": folder / "vectors.parquet", "log": folder / "log.parquet"}


def read_table(folder: Path) -> pa.Table:
    """Return the codes of the folder as a published table: a list column, whose last code numbers twins."""
    stored = SemanticIds.open(folder / "one")
    lists = np.concatenate([stored.codes, stored.suffix[:, None]], 1)
    return pa.table({"item_id": stored.items, "codes": list(lists)})


def test_a_folder_is_measured_with_its_codebooks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = longrec.diagnose(folder / "one", against=folder / "two", **options(folder))
    stored = SemanticIds.open(folder / "one")
    assert own.items == ITEMS
    assert own.codebooks == ""
    assert [level.usage.size for level in own.levels] == [SIZE] * 3
    rests = [level.rest for level in own.levels]
    residual = torch.from_numpy(draw_vectors().astype(np.float32)).numpy().astype(np.float64)
    total = ((residual - residual.mean(0)) ** 2).sum()
    for level, rest in enumerate(rests):
        residual = residual - stored.tokenizer.codebooks[level].numpy()[stored.codes[:, level]]
        assert rest == pytest.approx((residual**2).sum() / total, rel=1e-5)
    assert own.retention is not None
    assert list(own.retention.retention) == [QUANTIZED]  # no encoder, no autoencoder to measure
    assert own.churn is not None
    assert own.churn.prefixes <= own.churn.unaligned
    arguments = ["--vectors", str(folder / "vectors.parquet"), "--log", str(folder / "log.parquet")]
    against = ["--against", str(folder / "two"), "--into", "page.html", "--json", "out.json"]
    assert main(["diagnose", str(folder / "one"), *arguments, *against]) == 0
    said = capsys.readouterr().out
    assert f"{folder / 'one'}: 300 items" in said
    assert said.endswith("page.html\n")
    assert "Churn between versions" in Path("page.html").read_text()
    plain = json.loads(Path("out.json").read_text())
    assert plain["churn"]["prefixes"] == list(own.churn.prefixes)
    assert [finding["verdict"] for finding in plain["findings"]] == [finding.verdict for finding in own.findings]


def test_an_autoencoder_is_measured_beside_its_codes(folder: Path) -> None:
    x = torch.from_numpy(draw_vectors().astype(np.float32))
    settings = {"name": "drq", "levels": 2, "size": SIZE, "epochs": 1}
    tokenizer = build_tokenizer(settings)
    codes = tokenizer.fit(x, seed=0).codes.numpy()
    stored = SemanticIds.build(pa.array(np.arange(ITEMS)), codes, tokenizer, {}, "item_id")
    own = longrec.diagnose(stored, **options(folder))
    assert own.retention is not None
    assert list(own.retention.retention) == [QUANTIZED, UNQUANTIZED]
    assert own.retention.retention[QUANTIZED] != own.retention.retention[UNQUANTIZED]
    assert list(own.geometry) == ["item vectors", "latent", "codewords"]


def test_only_events_of_the_training_window_count(folder: Path) -> None:
    log = draw_log()
    train = log.filter(pa.array([split == "train" for split in log["split"].to_pylist()])).drop_columns("split")
    expected = longrec.diagnose(folder / "one", log=train)
    ways: list[dict[str, Any]] = [
        {"log": log},
        {"log": log.drop_columns("split"), "until": "2023-11-15"},
        {"log": log.drop_columns("split"), "until": 1_700_000_100},
    ]
    for way in ways:
        own = longrec.diagnose(folder / "one", **way)
        assert (own.facts["events"], own.item_top, own.matching) == ("640", expected.item_top, expected.matching)
    whole = longrec.diagnose(folder / "one", log=log.drop_columns("split"))
    assert whole.facts["events"] == "800"
    assert any("all events of the log" in note for note in whole.notes)
    assert not any("all events of the log" in note for note in own.notes)


def test_a_prepared_log_has_its_own_split(folder: Path) -> None:
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": {"column": "timestamp", "unit": "s"},
        "features": {"user_id": "id", "item_id": "id"},
    }
    log = draw_log()
    prepared = longrec.prepare(log, schema=schema, split={"by": "column", "column": "split"}, folder="prepared")
    own = longrec.diagnose(folder / "one", log=prepared.folder)
    reference = longrec.diagnose(folder / "one", log=log)
    assert own.facts == reference.facts
    assert own.matching == reference.matching


def test_a_table_of_codes_has_everything_that_needs_no_codebook(folder: Path) -> None:
    table = read_table(folder)
    columns = pq.read_table(folder / "one" / "items.parquet")
    for codes in (table, columns, columns.to_pandas()):
        own = longrec.diagnose(codes, log=folder / "log.parquet")
        assert len(own.levels) == 3
        assert any("only numbers the items with equal codes" in note for note in own.notes)
        reference = longrec.diagnose(folder / "one", log=folder / "log.parquet")
        assert own.collisions == reference.collisions
        assert own.item_top == reference.item_top
        assert own.matching is not None
        assert reference.matching is not None
        assert own.matching.equal == reference.matching.equal
        assert own.levels[0].overlap is None
    assert len(longrec.diagnose(table, levels=2).levels) == 2
    assert [level.usage.size for level in longrec.diagnose(table, size=20).levels] == [20] * 3


def test_codebooks_of_a_table_are_computed_and_labeled(folder: Path) -> None:
    """Residual k-means has the means of residuals as its codebooks, once it has converged."""
    own = longrec.diagnose(read_table(folder), into="page.html", **options(folder))
    assert own.codebooks == "computed as means of residuals"
    assert "computed as means of residuals" in Path("page.html").read_text()
    assert any("came without codebooks" in note for note in own.notes)
    reference = longrec.diagnose(folder / "one", **options(folder))
    for mine, theirs in zip(own.levels, reference.levels, strict=True):
        assert mine.rest == pytest.approx(theirs.rest, abs=0.02)


def test_the_file_of_tokenize_says_where_vectors_and_events_are(folder: Path) -> None:
    log = folder / "log.parquet"
    events = {"log": str(log), "time": {"column": "timestamp", "unit": "s"}, "until": "2023-11-15"}
    method = {"name": "rq_kmeans", "levels": 3, "size": SIZE}
    vectors = {"items": str(folder / "vectors.parquet"), "column": "embedding"}
    Path("tokens.yaml").write_text(
        json.dumps({"vectors": vectors, "method": method, "events": events, "capacity": {"weights": "events"}})
    )
    own = longrec.diagnose(folder / "one", vectors="tokens.yaml")
    reference = longrec.diagnose(folder / "one", **options(folder))
    assert own.levels[1].overlap == reference.levels[1].overlap
    assert own.facts["events"] == reference.facts["events"] == "640"
    assert own.item_top == reference.item_top
    assert own.matching is not None
    assert reference.matching is not None
    assert own.matching.equal[0][0] == pytest.approx(reference.matching.equal[0][0])
    logged = longrec.diagnose(folder / "one", vectors="tokens.yaml", log=log)
    assert logged.matching == reference.matching


def test_items_without_a_vector_are_left_out_and_counted(folder: Path) -> None:
    vectors = pq.read_table(folder / "vectors.parquet").slice(0, 250)
    own = longrec.diagnose(folder / "one", vectors=vectors, log=folder / "log.parquet")
    assert own.items == 250
    assert any(note.startswith("50 of 300 items have no vector") for note in own.notes)
    assert any(note.endswith("events are of items without codes and are left out.") for note in own.notes)


def test_a_capacity_or_foreign_vectors_are_noticed(folder: Path) -> None:
    vectors = pq.read_table(folder / "vectors.parquet")
    foreign = pa.table({"item_id": vectors["item_id"], "embedding": list(np.random.default_rng(0).random((ITEMS, 16)))})
    assert any(
        "other codes than the nearest" in note for note in longrec.diagnose(folder / "one", vectors=foreign).notes
    )
    own = longrec.diagnose(folder / "one", vectors=vectors)
    assert not any("other codes than the nearest" in note for note in own.notes)


def test_strict_ends_with_an_error_for_an_alarm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(folder / "one"), "--into", "page.html", "--strict"]) == 2
    assert "alarm: twins; expected none with --strict" in capsys.readouterr().err
    table = pa.table({"item_id": np.arange(64), "code_1": np.arange(64) // 8, "code_2": np.arange(64) % 8})
    pq.write_table(table, "codes.parquet")
    assert main(["diagnose", "codes.parquet", "--strict", "--levels", "2", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 64
    assert Path("codes-diagnosis.html").exists()


def test_wrong_inputs_say_what_to_do(folder: Path) -> None:
    table, log = read_table(folder), draw_log()
    lists = table.append_column("more", table["codes"])
    ragged = pa.table({"item_id": [1, 2], "codes": [[1, 2], [1]]})
    far = log.set_column(1, "item_id", pa.array(np.arange(800) + 10_000))
    text = pa.table({"item_id": [str(n) for n in range(800)], "user_id": np.arange(800)})
    text_codes = pa.table({"item_id": ["1", "2"], "codes": [[1, 2, 0, 0], [1, 1, 0, 0]]})
    gap = pa.table({"item_id": [1, 2], "code_1": [0, 1], "code_3": [0, 1]})
    few = pa.table({"item_id": [1], "e": [[1.0, 2.0]]})
    plain = pa.table({"item_id": [1, 2], "x": [1.0, 2.0]})
    faults: list[tuple[Any, dict[str, Any], str]] = [
        (lists, {}, "2 list columns that may be the codes: codes, more"),
        (plain, {}, "0 list columns that may be the codes"),
        (ragged, {}, "lists of 1 to 2 values"),
        (pa.concat_tables([table, table]), {}, "one row per item"),
        (table.rename_columns(["a", "b"]), {}, "name it: --item COLUMN|Name it: --item COLUMN"),
        (table, {"log": far}, "no item of the codes, but items such as 1....; expected items such as"),
        (table, {"log": text}, "items of the type string; expected int64, as the codes have"),
        (table, {"against": text_codes}, "items of the type string; expected int64, as the codes have"),
        (gap, {}, "the columns code_1, code_3; expected all levels: code_2 too"),
        (pa.table({"item_id": [1, 2], "code_1": [0, -1]}), {}, "1 of 2 items have such a code as -1 of level 1"),
        (pa.table({"item_id": [1, 2], "code_1": [0, 10**10]}), {}, "such a code as 10000000000 .*item 2"),
        (pa.table({"item_id": [1, 2], "code_1": [0, None]}), {}, "int64, 1 of 2 null"),
        (table, {"column": "code"}, r"no column 'code' \(--column\), did you mean 'codes'"),
        (plain, {"column": "x"}, "values of type DOUBLE; expected a list of numbers per item"),
        (table, {"vectors": table, "vector": "code"}, r"no column 'code' \(--vector\), did you mean 'codes'"),
        (table, {"vectors": plain, "vector": "x"}, "values of type DOUBLE; expected a list of numbers per item"),
        (table, {"vectors": few}, "the vector of 1 of the"),
        (table, {"vectors": plain}, "0 list columns that may be the vectors"),
        (folder / "one", {"vectors": pa.table({"item_id": np.arange(9), "e": list(np.ones((9, 3)))})}, "width 16"),
    ]
    for codes, more, says in faults:
        with pytest.raises(DataError, match=says):
            longrec.diagnose(codes, **more)
    for settings, says in (
        ({"weights": "users", "sigma": -1.0, "sigma_of": "it"}, "3 faults"),
        ({"weights": "exposure"}, "exposure needs a log"),
        ({"levels": 9}, "levels: 9, and the table has 4 codes per item"),
        ({"size": 3}, "size: 3, and there is a code 7"),
        ({"log": log, "until": "soon"}, "no date such as 2026-01-31"),
    ):
        with pytest.raises(ConfigError, match=says):
            longrec.diagnose(table, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="size: the folder of a tokenizer has it"):
        longrec.diagnose(folder / "one", size=3)
