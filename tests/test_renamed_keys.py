"""Former names of config keys and values: refused all at once, each with its present name."""

from __future__ import annotations

from pathlib import Path

import pytest

import longrec
from longrec.config import Strict, parse, upgrade
from longrec.errors import ConfigError
from longrec.features.schema import Schema
from longrec.models.core.catalog import names
from longrec.models.core.registry import find
from longrec.training.compress_settings import CompressConfig
from longrec.training.extract import ExtractConfig
from longrec.training.job import read_job

OLD = """
data:
  log: {parts: {train: a.parquet, test: b.parquet}}
  split: {by: parts}
  schema:
    user: user
    item: item
    time: {column: t, unit: s}
    label: click
    label_known_after: 1h
    features:
      user: {kind: id}
      item: {kind: id}
      brand: {kind: id, table: item}
      tags: {kind: multi, table: item}
      price: {kind: dense, table: candidate}
      age: {kind: bucket, table: user, quantiles: 4}
      page: {kind: id, table: event}
      day: {kind: time, part: weekday}
      about: {kind: vector, table: user, from: knowledge/v1}
      both: {kind: cross, of: [page, item], hash: 100}
      found: {kind: lookup, map: m, key: page, as: dense}
      read: {kind: id, feedback: true, known_after: 2h}
      stars: {kind: id, feedback: true, known_at: stars_at}
    histories:
      seen: {of: [item, brand, since_previous, sessions_back], last: 20}
model: {name: bst, places: 8}
fit:
  optimiser: adam
  tables_optimiser: rowwise_adagrad
  tables_lr: 0.05
  accumulator: 0.1
  by_length: true
  validations_per_epoch: 2
  start_from: runs/one
evaluate: {unit: row, replicates: 50}
"""

EXPECTED = {
    "data.log.parts: is called splits now",
    "data.split.by: 'parts' is called 'files' now; write by: files",
    "data.schema.label_known_after: is called label_delay now; write label_delay: 1h",
    "data.schema.features.brand.table: is called side now; write side: item",
    "data.schema.features.tags.kind: 'multi' is called 'multi_id' now; write kind: multi_id",
    "data.schema.features.tags.table: is called side now; write side: item",
    "data.schema.features.price.kind: 'dense' is called 'numeric' now; write kind: numeric",
    "data.schema.features.price.table: is called side now; write side: candidate",
    "data.schema.features.age.kind: 'bucket' is called 'bucketized' now; write kind: bucketized",
    "data.schema.features.age.table: is called side now; write side: user",
    "data.schema.features.page.table: is called side now; write side: context",
    "data.schema.features.day.kind: 'time' is called 'calendar' now; write kind: calendar",
    "data.schema.features.day.part: is called component now; write component: weekday",
    "data.schema.features.about.kind: 'vector' is called 'embedding' now; write kind: embedding",
    "data.schema.features.about.table: is called side now; write side: user",
    "data.schema.features.both.of: is called features now; write features: [page, item]",
    "data.schema.features.found.as: 'dense' is called 'numeric' now; write as: numeric",
    "data.schema.features.read.known_after: is called available_after now; write available_after: 2h",
    "data.schema.features.stars.known_at: is called available_at now; write available_at: stars_at",
    "data.schema.histories.seen.of: is called features now; "
    "write features: [item, brand, time_since_previous, session_recency]",
    "data.schema.histories.seen.last: is called max_length now; write max_length: 20",
    "model.places: is called max_positions now; write max_positions: 8",
    "fit.optimiser: is called optimizer now; write optimizer: adam",
    "fit.tables_optimiser: is called embedding_optimizer now; write embedding_optimizer: rowwise_adagrad",
    "fit.tables_lr: is called embedding_lr now; write embedding_lr: 0.05",
    "fit.accumulator: is called initial_accumulator_value now; write initial_accumulator_value: 0.1",
    "fit.by_length: is called bucket_by_length now; write bucket_by_length: true",
    "fit.validations_per_epoch: is called val_checks_per_epoch now; write val_checks_per_epoch: 2",
    "fit.start_from: is called init_from now; write init_from: runs/one",
    "evaluate.unit: is called resample now; write resample: row",
    "evaluate.replicates: is called n_resamples now; write n_resamples: 50",
}


def test_every_former_key_and_value_is_named_with_its_present_name(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    with pytest.raises(ConfigError) as raised:
        longrec.check(path)
    faults = raised.value.faults
    missing = [line for line in EXPECTED if not any(fault.startswith(line) for fault in faults)]
    assert not missing, "\n".join([*missing, "---", *faults])
    assert len(faults) == len(EXPECTED)


def test_a_run_folder_with_former_keys_is_read(tmp_path: Path) -> None:
    """The same config in a run folder, which LongRec wrote, is read under the present names."""
    for name in ("log.json", "environment.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.yaml").write_text(OLD)
    job = read_job(tmp_path / "config.yaml")
    assert job.model["max_positions"] == 8
    assert job.schema.histories["seen"].features[-1] == "session_recency"
    assert job.data.split.by == "files"


def test_a_former_key_on_the_command_line_is_refused(tmp_path: Path) -> None:
    overrides = ["fit.optimiser=adam", "data.schema.histories.seen.last=5", "evaluate.replicates=20"]
    schema = {"user": "u", "item": "i", "label": "y", "features": {"u": {"kind": "id"}}, "histories": {"seen": {}}}
    with pytest.raises(ConfigError) as raised:
        read_job({"data": {"log": "a.parquet", "schema": schema}, "model": "lr"}, overrides)
    for line in ("fit.optimiser: is called optimizer now", "seen.last: is called max_length now", "n_resamples: 20"):
        assert any(line in fault for fault in raised.value.faults), line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"regime": "stream"}, "mode: stream"),
        ({"probe": 100}, "scale_sample: 100"),
        ({"keep": "positive"}, "filter: positive"),
        ({"lag": "5m"}, "visibility_delay: 5m"),
        ({"past": 7}, "context_length: 7"),
        ({"standardise": False}, "standardize: false"),
    ],
)
def test_former_settings_of_compress_are_refused(settings: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=f"is called {line.partition(':')[0]} now; write {line}"):
        parse(CompressConfig, settings, "compress")


def test_a_former_setting_of_an_extractor_is_refused() -> None:
    with pytest.raises(ConfigError, match="lag: is called visibility_delay now; write visibility_delay: 5m"):
        parse(ExtractConfig, {"lag": "5m"}, "extract")


def _subclasses(cls: type) -> list[type]:
    return [inner for child in cls.__subclasses__() for inner in (child, *_subclasses(child))]


def test_every_renamed_key_leads_to_a_key() -> None:
    for name in names():
        find(name)
    for cls in _subclasses(Strict):
        keys = {field.alias or key for key, field in cls.model_fields.items()}  # type: ignore[attr-defined]
        assert set(cls.renamed_keys.values()) <= keys, cls  # type: ignore[attr-defined]
        assert set(cls.renamed_values) <= keys, cls  # type: ignore[attr-defined]
        assert not set(cls.renamed_keys) & keys, cls  # type: ignore[attr-defined]


def test_stored_content_is_read_under_the_present_names() -> None:
    old = {
        "user": "u",
        "item": "i",
        "time": "t",
        "label": "y",
        "label_known_after": "1h",
        "features": {
            "u": {"kind": "id"},
            "i": {"kind": "id"},
            "tags": {"kind": "multi", "table": "item"},
            "page": {"kind": "id", "table": "event"},
            "price": {"kind": "lookup", "map": "m", "key": "k", "as": "dense"},
        },
        "histories": {"seen": {"of": ["i", "since_previous"], "last": 3}},
    }
    schema = parse(Schema, upgrade(Schema, old), "stored")
    assert schema.histories["seen"].features == ("i", "time_since_previous")
    assert (schema.label_delay, schema.histories["seen"].max_length) == ("1h", 3)
    assert [schema.features[n].form for n in ("tags", "price")] == ["multi_id", "numeric"]
    assert schema.features["page"].side == "context"
    new = schema.model_dump(mode="json", exclude_unset=True)
    assert upgrade(Schema, new) == new
