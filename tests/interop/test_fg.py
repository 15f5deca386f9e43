"""fg.json: the conversion of each rule, the notes, and that its features are computed from raw rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec import commands, imports
from longrec.errors import ConfigError
from longrec.interop import fg, json_positions
from longrec.interop.fg_fields import FG_FIELDS, KINDS, OTHERS

USER = {"feature_name": "user_id", "feature_type": "id_feature", "expression": "user:user_id", "hash_bucket_size": 50}
ITEM = {"feature_name": "item_id", "feature_type": "id_feature", "expression": "item:item_id", "hash_bucket_size": 60}


def read(*features: dict[str, Any], **top: Any) -> fg.ImportedGenerator:
    """Read the rules of user and item, and more."""
    rules = {"features": [USER, ITEM, *features], "reserves": ["user_id", "clk"], **top}
    return fg.read_document(json_positions.parse(json.dumps(rules, indent=1), "fg.json"), Path("rules/fg.json"))


def rule(kind: str, expression: Any = "item:x", **more: Any) -> dict[str, Any]:
    return {"feature_name": "f", "feature_type": f"{kind}_feature", "expression": expression, **more}


HASH = {"hash_bucket_size": 100}
X = {"side": "candidate", "column": "x"}
ID = {"kind": "id", **X}
NUMBER = {"kind": "numeric", **X}
LOOKUP = {"kind": "lookup", "side": "candidate", "map": "m", "key": "k", "separator": "\x1d"}
CROSS = {"kind": "cross", "features": ["a", "b"], "hash": 100}
MAP = {"feature_name": "f", "feature_type": "lookup_feature", "map": "user:m", "key": "item:k"}


MATCHED = {"kind": "lookup", "side": "candidate", "map": "m", "key": "k", "separator": ",", "outer_separator": "|"}
MATCH = {"feature_name": "f", "feature_type": "match_feature", "user": "user:m", "item": "item:k", "category": "ALL"}


@pytest.mark.parametrize(
    ("one", "settings"),
    [
        (rule("id", **HASH), {**ID, "hash": 100}),
        (rule("id", "user:x", **HASH), {"kind": "id", "column": "x", "hash": 100}),
        (rule("id", "context:f", **HASH), {"kind": "id", "side": "candidate", "hash": 100}),
        (rule("id", "item:item_id", **HASH), {"kind": "id", "column": "item_id", "hash": 100}),
        (rule("id", vocab_list=["a", "b"]), {**ID, "vocab": ["a", "b"]}),
        (rule("id", vocab_dict={"a": 2, "b": 3}), {**ID, "vocab": ["a", "b"]}),
        (rule("id", vocab_file="v.txt"), {**ID, "vocab": Path("rules/v.txt")}),
        (rule("id", vocab_file="s3://v"), {**ID, "vocab": "s3://v"}),
        (rule("id", num_buckets=12, embedding_dim=4), {**ID, "dim": 4}),
        (rule("id", embedding_dimension=4, **HASH), {**ID, "hash": 100, "dim": 4}),
        (rule("id", hash_bucket_size=2**40), {**ID, "hash": 2**31 - 3}),
        (
            rule("id", is_multi=True, combiner="mean", **HASH),
            {"kind": "multi_id", **X, "hash": 100, "separator": "\x1d", "pool": "mean"},
        ),
        (
            rule("id", value_dim=0, separator="|", **HASH),
            {"kind": "multi_id", **X, "hash": 100, "separator": "|", "pool": "sum"},
        ),
        (
            rule("id", weighted=True, **HASH),
            {"kind": "multi_id", **X, "hash": 100, "separator": "\x1d", "pool": "sum", "weight_separator": ":"},
        ),
        (rule("raw"), NUMBER),
        (rule("raw", default_value="-1"), {**NUMBER, "missing": -1}),
        (rule("raw", value_dimension=3), {**NUMBER, "width": 3, "separator": "\x1d"}),
        (
            rule("raw", value_dimension=2, normalizer="method=log10"),
            {**NUMBER, "scale": "log", "width": 2, "separator": "\x1d"},
        ),
        (
            rule("raw", value_dimension=2, normalizer="method=minmax,min=0,max=9"),
            {**NUMBER, "width": 2, "separator": "\x1d"},
        ),
        (rule("raw", value_dim=4, separator="|"), {**NUMBER, "width": 4, "separator": "|"}),
        (rule("raw", normalizer="method=log10,threshold=1e-10,default=-10"), {**NUMBER, "scale": "log"}),
        (rule("raw", normalizer="method=zscore,mean=0.0,standard_deviation=10.0"), {**NUMBER, "scale": "standard"}),
        (rule("raw", normalizer_fn="tf.math.log1p"), {**NUMBER, "scale": "log"}),
        (rule("raw", boundaries=[5, 1.5], embedding_dim=4), {"kind": "bucketized", **X, "edges": [1.5, 5], "dim": 4}),
        (rule("raw", bucketize_boundaries="10,20,30"), {"kind": "bucketized", **X, "edges": [10, 20, 30]}),
        (
            rule("raw", boundaries=[0, 1], normalizer="method=minmax,min=2,max=4"),
            {"kind": "bucketized", **X, "edges": [2, 4]},
        ),
        (
            rule("raw", boundaries=[-1, 1], normalizer="method=zscore,mean=3,standard_deviation=2"),
            {"kind": "bucketized", **X, "edges": [1, 5]},
        ),
        (rule("raw", boundaries=[0, 2], normalizer="method=log10"), {"kind": "bucketized", **X, "edges": [1, 100]}),
        (rule("combo", ["user:a", "item:b"], **HASH), {**CROSS, "side": "candidate"}),
        (rule("combo", ["user:a", "user:b"], **HASH), CROSS),
        (rule("combo", ["item:x"], **HASH), {**ID, "hash": 100}),
        ({**MAP, **HASH}, {**LOOKUP, "as": "id", "hash": 100}),
        ({**MATCH, **HASH, "matchType": "hit"}, {**MATCHED, "as": "id", "hash": 100}),
        ({**MATCH, "category": "item:c", "needDiscrete": False}, {**MATCHED, "outer_key": "c", "as": "numeric"}),
        ({**MAP, "needDiscrete": False, "default_value": "2"}, {**LOOKUP, "as": "numeric", "missing": 2}),
        ({**MAP, "need_discrete": False, "boundaries": [1, 2]}, {**LOOKUP, "as": "bucketized", "edges": [1, 2]}),
    ],
    ids=lambda value: None if "feature_name" not in value else re.sub(r"[^\w=,]", "", str(value))[20:90],
)  # fmt: skip
def test_a_rule_becomes_a_feature(one: dict[str, Any], settings: dict[str, Any]) -> None:
    assert read(one).features["f"] == settings


def test_what_holds_for_the_file_holds_for_its_features() -> None:
    imported = read(rule("id", is_multi=True, **HASH), embedding_dim=8, multi_val_sep="|", kv_separator=":")
    assert imported.features["user_id"] == {"kind": "id", "hash": 50, "dim": 8}
    separators = {"separator": "|", "weight_separator": ":"}
    assert imported.features["f"] == {"kind": "multi_id", **X, "hash": 100, "dim": 8, "pool": "sum", **separators}


def test_shared_tables_and_crosses_of_two_features() -> None:
    info = {"feature_names": ["user_id"], "hash_bucket_size": 10, "embedding_dim": 4, "final_feature_name": "both"}
    imported = read(
        rule("id", shared_name="t", extra_combo_info=info, **HASH),
        {**rule("id", "user:y", shared_name="t", **HASH), "feature_name": "g"},
    )
    assert imported.features["both"] == {
        "kind": "cross",
        "side": "candidate",
        "features": ["x", "user_id"],
        "hash": 10,
        "dim": 4,
    }
    assert imported.features["g"] == {"kind": "id", "column": "y", "share": "f"}


def test_user_item_and_label() -> None:
    imported = read()
    assert (imported.schema["user"], imported.schema["item"], imported.schema["label"]) == ("user_id", "item_id", "clk")
    assert imported.schema["time"] == {"column": "row", "unit": "step"}
    assert imported.rows == {"number": "row"}
    assert read(label_fields=["buy"]).schema["label"] == "buy"
    document = json_positions.parse(
        json.dumps({"features": [rule("id", **HASH)], "label_fields": ["y", "z"]}), "fg.json"
    )
    imported = fg.read_document(document, Path("fg.json"), item="x")
    assert (imported.schema["user"], imported.schema["item"]) == ("row", "x")
    assert any("z is not read" in note.explanation for note in imported.notes)


SEQUENCE = {
    "sequence_name": "click_seq", "sequence_column": "clicks", "sequence_length": 10, "sequence_delim": ";",
    "attribute_delim": "#", "sequence_table": "item", "sequence_pk": "user:clicks",
    "features": [
        {"feature_name": "item_id", "feature_type": "id_feature", "expression": "item:item_id"},
        {"feature_name": "price", "feature_type": "raw_feature", "expression": "item:price"},
        {"feature_name": "ts", "feature_type": "raw_feature", "expression": "user:ts"},
    ],
}  # fmt: skip
PRICE = {"feature_name": "cost", "feature_type": "raw_feature", "expression": "item:price", "boundaries": [5, 10]}


def test_a_sequence_is_a_history_of_packed_cells() -> None:
    imported = read(PRICE, SEQUENCE)
    columns = {"item_id": "clicks__item_id", "cost": "clicks__cost"}
    assert imported.schema["histories"] == {
        "click_seq": {"features": ["item_id", "cost"], "columns": columns, "max_length": 10}
    }
    into = {"item__item_id": "clicks__item_id", "item__price": "clicks__cost"}
    assert imported.rows == {"packed": {"clicks": {"into": into, "step": ";", "feature": "#", "ignore": ["user__ts"]}}}
    assert any("no id or bucketized feature of the candidate reads ts" in str(note) for note in imported.notes)
    assert "time" not in imported.schema


def test_a_sequence_of_nothing_is_left_out() -> None:
    imported = read({**SEQUENCE, "features": SEQUENCE["features"][1:]})  # type: ignore[index]
    assert "histories" not in imported.schema
    assert any("so click_seq is left out" in note.explanation for note in imported.notes)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_rules_are_named_with_their_reason(kind: str) -> None:
    imported = read({"feature_name": "f", "feature_type": kind, "expression": "item:x"})
    assert "f" not in imported.features
    assert [str(note) for note in imported.notes if OTHERS[kind] in note.explanation and "features[2]" in note.field]


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (rule("id", "x"), r"expression is 'x'; expected user:COLUMN"),
        (rule("id", **HASH, vocab_list=["a"]), r"vocab_list conflicts with hash_bucket_size"),
        (rule("id", hash_bucket_size="100"), r"hash_bucket_size is '100'; expected a whole number"),
        (rule("id", hash_bucket_size=True), r"hash_bucket_size is True"),
        (rule("id", is_multi=True, combiner="max-pool", **HASH), r"combiner is 'max-pool'"),
        (rule("idd"), r"'idd_feature', which is no type of a feature; did you mean 'id_feature'\?"),
        (rule("raw", boundaries="1,two"), r"boundaries is '1,two'; expected a list of numbers"),
        (rule("raw", normalizer="log"), r"normalizer is 'log'; expected method=zscore"),
        (rule("raw", normalizer="method=zscore,mean=m"), r"has mean=m; expected a number"),
        (rule("combo", ["user:a", "item:b"]), r"hash_bucket_size of f is missing"),
        (rule("id", extra_combo_info={"feature_names": []}), r"extra_combo_info is incomplete"),
        ({**MAP, "map": None}, r"map is missing"),
        ({"feature_type": "id_feature", "expression": "item:x"}, r"feature_name is missing"),
        (rule("id") | {"feature_type": ["id_feature"]}, r"feature_type is \['id_feature'\], which is no type"),
        ({**ITEM}, r"gives a second feature the name 'item_id'"),
        (rule("id", embedding_dim=9999, **HASH), r"dim"),
        ({**SEQUENCE, "features": "all"}, r"features is missing or no list"),
        ({**SEQUENCE, "sequence_name": ""}, r"sequence_name is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_have_line_and_column(one: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        read(one)
    for fault in raised.value.faults:
        assert re.match(r".*fg\.json:\d+:\d+: ", fault), fault
        assert not fault.startswith("rules/fg.json:1:1:"), fault


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        read(rule("id", "x"), {**rule("raw", normalizer="log"), "feature_name": "g"}, reserves=[])
    assert len(raised.value.faults) == 3


def test_the_label_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r'buy, clk of reserves may be the label; add "label_fields"'):
        read(reserves=["buy", "clk"])


def test_an_unknown_key_is_noted_with_the_nearest() -> None:
    (note,) = (note for note in read(rule("id", hash_bucket_sise=3, num_buckets=3)).notes if "sise" in note.field)
    assert note.explanation == "no documented key; did you mean 'hash_bucket_size'?"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("the file", "sequence")])
def test_no_key_is_dropped_in_silence(kind: str) -> None:
    values = {"int": 3, "text": "item:x", "bool": False, "texts": ["item:x", "user:y"], "numbers": [1, 2], "map": {}}
    keys = [key for key in FG_FIELDS if key.kind == kind]
    exclusive = {"vocab_list", "vocab_file", "vocab_dict", "num_buckets", "extra_combo_info"}
    one = {key.name: values.get(key.type, 1) for key in keys if key.name not in exclusive}
    one |= {"feature_name": "f", "feature_type": kind, "combiner": "sum", "kv_separator": ":", "shared_name": "t"}
    one |= {"normalizer": "method=log10"} if "normalizer" in one else {}
    noted = {note.field.rpartition(".")[2] for note in read({k: v for k, v in one.items() if k in KINDS[kind]}).notes}
    assert {key.name for key in keys if key.status != "carried" and key.name in one} <= noted


ROWS = """1,u1,i1,4.5,item__item_id:i3#item__price:9#user__ts:7;item__item_id:i1#item__price:2#user__ts:3
0,u2,i2,12,
1,u1,i3,7,item__item_id:i9#item__price:#user__ts:1
0,u2,i1,3,item__item_id:i2#item__price:40#user__ts:2
"""


def test_an_imported_schema_prepares_rows_as_the_generator_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longrec.yaml_reader import read_yaml

    monkeypatch.chdir(tmp_path)
    Path("fg.json").write_text(json.dumps({"features": [USER, ITEM, PRICE, SEQUENCE], "reserves": ["clk"]}))
    Path("train.txt").write_text(ROWS)
    Path("test.txt").write_text(ROWS)
    imported = imports.import_config("fg.json", "out")
    assert imported["files"] == ["out/schema.yaml", "out/NOTES.md"]
    assert "the steps of click_seq are encoded as cost is" in Path("out/NOTES.md").read_text()
    columns = {"clk": "int", "user_id": "text", "item_id": "text", "price": "float", "clicks": "text"}
    rows = {"columns": columns, **imported["rows"]}
    log = {"splits": {"train": ["train.txt"], "test": ["test.txt"]}, "rows": rows}
    job = {"data": {"schema": read_yaml(Path("out/schema.yaml")), "log": log, "split": {"by": "files"}}, "model": "din"}
    assert commands.check(job)["model"] == "din"
    assert commands.prepare(job)["events"] == 8


def test_positions_of_json() -> None:
    document = json_positions.parse('{"a": [1, {"b": "x,{}\\"", "c": []},\n "é"],\n "d": {}, "a": 2}', "f")
    assert document.positions["a", 1, "b"] == (1, 12)
    assert document.positions["a", 2] == (2, 2)
    assert document.repeated == (("a",),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": NaN}',
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        '{"features": 3}',
        "[]",
        '{"features": [3]}',
        "7" * 5000,
    ],
)
def test_what_is_no_generator_is_our_error(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        fg.read_document(json_positions.parse(text, "fg.json"), Path("fg.json"))
    assert all(re.match(r"fg\.json:\d+:\d+: ", fault) for fault in raised.value.faults)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        fg.read(tmp_path / "none.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no UTF-8"):
        fg.read(tmp_path / "odd.json")


COMBO = {**rule("combo", ["user:a", "item:b"], **HASH), "feature_name": "c"}
WHOLE = json.dumps({"features": [USER, ITEM, PRICE, {**MAP, **HASH}, COMBO, SEQUENCE], "reserves": ["clk"]})
TOKENS = re.findall(r'"[^"]*"|[\w.]+|[^\w\s]', WHOLE)
PIECES = ["{", "}", "[", "]", ",", ":", '""', '"x"', "0", "-1", "1e999", "true", "null", "9" * 30, '"item:x"']


@given(st.data())
def test_a_mutated_generator_loads_or_is_our_error(data: st.DataObject) -> None:
    tokens = list(TOKENS)
    values = [n for n, token in enumerate(tokens) if token not in "{}[]:,"]
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.sampled_from(values) | st.integers(0, len(tokens) - 1))
        tokens[index] = data.draw(st.sampled_from(PIECES) | st.sampled_from(TOKENS))
    try:
        fg.read_document(json_positions.parse(" ".join(tokens), "fg.json"), Path("fg.json"))
        return
    except ConfigError as error:
        faults = error.faults
    assert faults
    assert all(re.match(r"fg\.json:\d+:\d+: ", fault) for fault in faults)
