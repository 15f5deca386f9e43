"""Check, import and training of an EasyRec configuration from the command line, in both spellings of features."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longrec import commands, imports
from longrec.cli import main
from longrec.errors import ConfigError
from longrec.interop import easyrec

COLUMNS = "clk buy pid adgroup_id cate_id brand user_id age_level tag_category_list tag_brand_list price".split()  # noqa: SIM905
FEATURE = "input_names: '%s' feature_type: IdFeature hash_bucket_size: 100 embedding_dim: 4"
SEQUENCE = "input_names: '%s' feature_type: SequenceFeature separator: '|' hash_bucket_size: 100000 embedding_dim: 4"
PLAIN = ("pid", "adgroup_id", "cate_id", "brand", "user_id", "age_level")
PRICE = "input_names: 'price' feature_type: RawFeature boundaries: [5, 10, 15, 20] embedding_dim: 4"
FEATURES = (*(FEATURE % name for name in PLAIN), PRICE, SEQUENCE % "tag_brand_list", SEQUENCE % "tag_category_list")
FAST = ["evaluate.n_resamples=10", "fit.tensorboard=off", "fit.mlflow=off"]
CONFIG = """# A configuration in the form of the Taobao sample
train_input_path: "train.csv" eval_input_path: "test.csv" model_dir: "runs/taobao"
train_config {
  optimizer_config { adam_optimizer { learning_rate { exponential_decay_learning_rate {
    initial_learning_rate: 0.001 decay_steps: 10 decay_factor: 0.5 min_learning_rate: 0.00001 } } } }
  num_steps: 12 log_step_count_steps: 4
}
eval_config { metrics_set { auc {} } }
data_config {
  input_type: CSVInput separator: "," batch_size: 16 num_epochs: 4 label_fields: "clk"
  FIELDS
}
FEATURES
model_config {
  model_class: "MultiTowerDIN"
  feature_groups { group_name: "user" feature_names: ["user_id", "age_level"] wide_deep: DEEP }
  feature_groups { group_name: "item" feature_names: ["adgroup_id", "cate_id", "brand", "price", "pid"] }
  seq_att_groups {
    group_name: "din"
    seq_att_map { key: "brand" hist_seq: "tag_brand_list" }
    seq_att_map { key: "cate_id" hist_seq: "tag_category_list" }
  }
  multi_tower {
    towers { input: "user" dnn { hidden_units: [8, 4] } }
    towers { input: "item" dnn { hidden_units: [8, 4] } }
    din_towers { input: "din" dnn { hidden_units: [8, 4, 1] } }
    final_dnn { hidden_units: [8, 4] }
    l2_regularization: 1e-6
  }
  embedding_regularization: 1e-5
}
"""


def config(*, flat: bool = True) -> str:
    """Return the configuration in the spelling of ``feature_configs`` or of ``feature_config``."""
    types = dict.fromkeys(COLUMNS, "STRING") | dict.fromkeys(("clk", "buy", "price"), "INT32")
    fields = "\n".join(f"input_fields {{ input_name: '{name}' input_type: {kind} }}" for name, kind in types.items())
    features = "\n".join(f"feature_configs : {{ {one} }}" for one in FEATURES)
    if not flat:
        features = "feature_config {\n" + "\n".join(f"features {{ {one} }}" for one in FEATURES) + "\n}"
    return CONFIG.replace("FIELDS", fields).replace("FEATURES", features)


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write rows of eleven columns without a header, some with empty histories, to the working directory."""
    draw = random.Random(3)
    for name, count in (("train.csv", 120), ("test.csv", 60)):
        lines = []
        for _ in range(count):
            length = draw.choice([0, 1, 4, 9])
            lists = ["|".join(str(draw.randrange(20)) for _ in range(length)) for _ in range(2)]
            ids = [
                draw.randrange(2),
                draw.randrange(2),
                draw.randrange(2),
                draw.randrange(40),
                draw.randrange(20),
                draw.randrange(20),
            ]
            cells = [*ids, draw.randrange(15), draw.choice(["", 1, 2]), *lists, draw.randrange(40)]
            lines.append(",".join(map(str, cells)))
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "din.config").write_text(config())
    (tmp_path / "seed.config").write_text(config(flat=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_metrics(folder: str) -> str:
    results = json.loads(Path("runs", folder, "results.json").read_text())
    return json.dumps(results["metrics"])


def test_the_imported_config_trains_to_the_same_numbers(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "din.config"]) == 0
    assert "din (brand, cate_id)" in capsys.readouterr().out
    assert main(["import", "din.config", "--into", "out", "--json", "notes.json"]) == 0
    out = capsys.readouterr().out
    assert "differs: din.config:2:59: model_dir: its last component names the run" in out
    assert "user: user_id, by its name" in out
    notes = json.loads(Path("notes.json").read_text())
    assert {"line": 2, "column": 59, "field": "model_dir", "fate": "differs"}.items() <= notes["notes"][-1].items()
    weights = [one["changes_results"] for one in notes["notes"]]
    assert weights == sorted(weights, reverse=True)  # what changes results comes first
    assert any(weights)
    assert not all(weights)

    notes_printed = imports.read_job_source("din.config").notes
    assert main(["train", "din.config", "--quiet", *FAST]) == 0
    out = capsys.readouterr().out
    assert out.startswith("\n".join(notes_printed) + "\n")
    assert "note: din.config: user: user_id, by its name; override with data.schema.user" in out
    kept = Path("runs/taobao/NOTES.md").read_text()
    assert "- `din.config:2:59` `model_dir`: its last component names the run" in kept
    assert "--user" not in kept + out
    for command in ("check", "prepare"):
        assert main([command, "din.config", *FAST]) == 0
        assert "\n".join(notes_printed) in capsys.readouterr().out
    assert main(["train", "din.config", "name=again", "--quiet", "--json", "-", *FAST]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["run"].endswith("again")
    assert "\n".join(notes_printed) in shown.err
    assert main(["train", "out/config.yaml", "name=imported", "--quiet", *FAST]) == 0
    assert read_metrics("taobao") == read_metrics("imported")


def test_both_spellings_of_features_convert_alike(sample: Path) -> None:
    one, other = easyrec.read("din.config"), easyrec.read("seed.config")
    assert one.job() == other.job()
    assert [note.explanation for note in one.notes] == [note.explanation for note in other.notes]


def test_faults_of_the_job_have_the_lines_of_the_file(sample: Path) -> None:
    text = config().replace("learning_rate: 0.001", "learning_rate: 0").replace('"train.csv"', '"none.csv"')
    Path("bad.config").write_text(text)
    with pytest.raises(ConfigError) as raised:
        commands.check("bad.config")
    assert any(fault.startswith("bad.config:5:5: fit.lr: ") for fault in raised.value.faults)
    assert any(fault.startswith("bad.config:2:1: data.log") and "none.csv" in fault for fault in raised.value.faults)


def test_user_and_item_may_be_options(sample: Path) -> None:
    Path("odd.config").write_text(config().replace("adgroup_id", "thing"))
    with pytest.raises(ConfigError, match="set it with data.schema.item=COLUMN"):
        commands.check("odd.config")
    with pytest.raises(ConfigError, match="set it with --item COLUMN"):
        imports.import_config("odd.config", "out")
    with pytest.raises(ConfigError, match="--item: no column named 'thin'; did you mean 'thing'"):
        imports.import_config("odd.config", "out", item="thin")
    with pytest.raises(ConfigError, match="data.schema.item: no column named 'thin'; did you mean 'thing'"):
        commands.check("odd.config", ["data.schema.item=thin"])
    assert commands.check("odd.config", ["data.schema.item=thing"])["model"] == "multi_tower"
    imports.import_config("odd.config", "out", item="thing", user="pid")
    assert "item: thing" in Path("out/schema.yaml").read_text()
    with pytest.raises(ConfigError, match="an unknown kind of file"):
        imports.import_config("train.csv", "out2")


TOWERS = """task_towers { tower_name: "ctr" label_name: "clk" dnn { hidden_units: 8 } }
    task_towers { tower_name: "cvr" label_name: "buy" dnn { hidden_units: 8 } weight: 0.5 }"""
SEVERAL = {
    "MMoE": f"mmoe {{ expert_dnn {{ hidden_units: 8 }} num_expert: 2 {TOWERS} }}",
    "ESMM": """esmm { groups { input: "all" dnn { hidden_units: 8 } }
    ctr_tower { tower_name: "ctr" label_name: "clk" } cvr_tower { tower_name: "cvr" label_name: "buy" } }""",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_models_of_several_tasks_learn_every_label(name: str, sample: Path) -> None:
    text = config().replace('label_fields: "clk"', 'label_fields: ["clk", "buy"]')
    group = """feature_groups { group_name: "all" feature_names: ["user_id", "age_level", "adgroup_id", "brand"]
      sequence_features { group_name: "seen" seq_att_map { key: "brand" hist_seq: "tag_brand_list" } } }"""
    model = f'model_config {{ model_class: "{name}" {group} {SEVERAL[name]} embedding_regularization: 1e-5 }}'
    Path("several.config").write_text(text[: text.index("model_config {")] + model)
    assert main(["train", "several.config", "--quiet", *FAST]) == 0
    label, other = ("clk", "buy") if name == "MMoE" else ("buy", "clk")
    metrics = json.loads(read_metrics("taobao"))
    assert {"auc", f"auc.{other}"} <= set(metrics)
    predictions = pq.read_table("runs/taobao/predictions/test.parquet")
    rows = [line.split(",") for line in Path("test.csv").read_text().splitlines()]
    expected = Counter((float(row[COLUMNS.index(label)]), float(row[COLUMNS.index(other)])) for row in rows)
    assert Counter(zip(predictions["label"].to_pylist(), predictions[f"label.{other}"].to_pylist())) == expected
