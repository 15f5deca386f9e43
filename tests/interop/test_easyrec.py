"""EasyRec's configurations: the conversion of each field, the notes, and that nothing is dropped in silence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import ConfigError
from longrec.interop import easyrec, easyrec_folder, text_format
from longrec.interop.easyrec_fields import FIELDS, MESSAGES, SCALARS
from longrec.interop.text_format import Message
from longrec.training.job import read_job


@dataclass(frozen=True)
class Case:
    """One of the configurations in the folder ``easyrec``, written after EasyRec's public documentation.

    Its head holds the expectations: ``#= path: value`` of the job, ``#~`` text in a note, ``#!`` text in a fault.
    Without a fault it must load.
    """

    name: str
    text: str

    def pieces(self, mark: str) -> list[str]:
        return [line.removeprefix(mark).strip() for line in self.text.splitlines() if line.startswith(mark)]


CASES = [Case(path.stem, path.read_text()) for path in sorted((Path(__file__).parent / "easyrec").glob("*.config"))]
SMALLEST = next(case for case in CASES if case.name == "the_smallest")


def read(folder: Path, text: str, **options: str) -> easyrec.ImportedConfig:
    (folder / "their.config").write_text(text, encoding="utf-8")
    return easyrec.read(folder / "their.config", **options)


def get_at(settings: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for key in path.split("."):
        settings = settings[key]
    return settings


def test_after_200_faults_reading_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr("longrec.interop.easyrec_section.nearest", lambda name, valid: compared.append(name))
    unknown = "".join(f"k{number}: 1\n" for number in range(5_000)) + f"{'k' * 100_000}: 1\n"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, unknown)
    assert (len(caught.value.faults), len(compared)) == (200, 200)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_configuration_loads_or_names_its_faults(case: Case, tmp_path: Path) -> None:
    if expected := case.pieces("#!"):
        with pytest.raises(ConfigError) as raised:
            read(tmp_path, case.text)
        for fault in raised.value.faults:
            assert re.match(r".*their\.config:\d+:\d+: ", fault), fault
        for piece in expected:
            assert any(piece in fault for fault in raised.value.faults), (piece, raised.value.faults)
        return
    imported = read(tmp_path, case.text)
    job = imported.job()
    read_job(job)
    for line in case.pieces("#="):
        path, _, value = line.partition(": ")
        assert get_at(job, path) == json.loads(value), path
    for piece in case.pieces("#~"):
        assert any(piece in str(note) for note in imported.notes), (piece, [str(note) for note in imported.notes])


def test_there_are_fifty() -> None:
    assert len(CASES) >= 50
    assert len({case.name for case in CASES}) == len(CASES)


def list_written_fields(message: str, node: Message) -> set[tuple[str, str]]:
    """Return the fields of the table that a configuration writes, by message and name."""
    fields: set[tuple[str, str]] = set()
    for one in node.fields:
        spec = MESSAGES[message].get(one.name)
        if spec is not None:
            fields.add((message, one.name))
            if spec.type in MESSAGES and isinstance(one.value, Message):
                fields |= list_written_fields(spec.type, one.value)
    return fields


def test_the_configurations_write_every_field_of_the_table() -> None:
    covered = set().union(*(list_written_fields("EasyRecConfig", text_format.parse(case.text)) for case in CASES))
    models = {
        "model_params", "dummy", "autoint", "dlrm", "cmbf", "uniter", "multi_tower_recall", "mind",
        "dropoutnet", "metric_learning", "pdn", "dssm_senet", "dat", "rocket_launching",
    }  # fmt: skip
    missing = [f"{f.message}.{f.name}" for f in FIELDS if (f.message, f.name) not in covered and f.name not in models]
    assert missing == []


@pytest.mark.parametrize("name", ["model_params", "mind", "esmm", "rocket_launching"])
def test_settings_of_other_models_are_refused(name: str, tmp_path: Path) -> None:
    text = SMALLEST.text.replace("multi_tower {", f"{name} {{ }} multi_tower {{")
    with pytest.raises(ConfigError, match=f"multi_tower conflicts with {name}"):
        read(tmp_path, text)


def test_the_table_is_whole() -> None:
    types = {field.type for field in FIELDS if not field.type.startswith("enum:")}
    assert types <= {*SCALARS, "any", *MESSAGES}
    assert len({(field.message, field.name) for field in FIELDS}) == len(FIELDS)
    assert all(field.explanation for field in FIELDS if field.status != "carried")


@pytest.mark.parametrize("case", [case for case in CASES if not case.pieces("#!")], ids=lambda case: case.name)
def test_nothing_is_dropped_in_silence(case: Case, tmp_path: Path) -> None:
    imported = read(tmp_path, case.text)
    noted = {note.field for note in imported.notes}

    def silent(message: str, node: Message, path: str) -> list[str]:
        lines = []
        for one in node.fields:
            spec, dotted = MESSAGES[message][one.name], f"{path}.{one.name}" if path else one.name
            if dotted in noted or any(dotted.startswith(f"{note}.") for note in noted):
                continue
            if spec.status != "carried":
                lines.append(dotted)
            if spec.type in MESSAGES and isinstance(one.value, Message):
                lines += silent(spec.type, one.value, dotted)
        return lines

    assert silent("EasyRecConfig", text_format.parse(case.text), "") == []


def test_user_and_item_may_be_arguments(tmp_path: Path) -> None:
    imported = read(tmp_path, SMALLEST.text, user="age", item="tags")
    assert (imported.schema["user"], imported.schema["item"]) == ("age", "tags")
    with pytest.raises(ConfigError, match=r"--user: no column named 'agee'; did you mean 'age'\?"):
        read(tmp_path, SMALLEST.text, user="agee")


def test_a_folder_holds_config_schema_and_notes(tmp_path: Path) -> None:
    from longrec.yaml_reader import read_yaml

    imported = read(tmp_path, SMALLEST.text)
    files = easyrec_folder.write(imported, tmp_path / "out")
    assert [file.name for file in files] == ["config.yaml", "schema.yaml", "NOTES.md"]
    config, schema = read_yaml(files[0]), read_yaml(files[1])
    assert config["data"]["schema"] == "schema.yaml"
    assert config["data"]["log"]["splits"] == {"train": ["../train.csv"], "test": ["../test.csv"]}
    job = imported.job()
    assert schema == job["data"]["schema"]
    assert {**config, "data": None} == {**job, "data": None}
    notes = files[2].read_text()
    line = SMALLEST.text[: SMALLEST.text.index("model_dir")].count("\n") + 1
    assert f"- `their.config:{line}:1` `model_dir`: its last component names the run" in notes
    assert "- user: user_id, by its name" in notes
    with pytest.raises(ConfigError, match=r"holds config.yaml, schema.yaml, NOTES.md already"):
        easyrec_folder.write(imported, tmp_path / "out")


def test_faults_of_the_job_have_lines(tmp_path: Path) -> None:
    imported = read(tmp_path, SMALLEST.text)
    line_number = SMALLEST.text[: SMALLEST.text.index("hash_bucket_size: 60")].count("\n") + 1
    (line,) = imported.locate(["data.schema.features.item_id.hash: must be a whole number"])
    assert f"their.config:{line_number}:" in line
    assert imported.locate(["data.nothing: x"]) == [f"{tmp_path / 'their.config'}:1:1: data.nothing: x"]


TOKENS = [re.findall(r'"[^"]*"|[\w.]+|[^\w\s]', re.sub(r"(?m)^#.*$", "", case.text)) for case in CASES]
PIECES = [
    "{",
    "}",
    ":",
    "[",
    "]",
    "'x'",
    "''",
    "0",
    "-1",
    "99999999999999999999",
    "1e999",
    "nan",
    "true",
    "DEEP",
    "x",
    "\\",
    "'",
]


@settings(max_examples=1000)
@given(st.data())
def test_a_mutated_configuration_loads_or_is_our_error(data: st.DataObject) -> None:
    tokens = list(data.draw(st.sampled_from(TOKENS)))
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(tokens) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                tokens[index : index + 1] = []
            case 1:
                tokens[index] = data.draw(st.sampled_from(PIECES))
            case 2:
                tokens.insert(index, data.draw(st.sampled_from(tokens)))
            case _:
                other = data.draw(st.integers(0, len(tokens) - 1))
                tokens[index], tokens[other] = tokens[other], tokens[index]
    try:
        tree = text_format.parse(" ".join(tokens), "their.config")
        imported = easyrec.read_tree(tree, Path("their.config"))
    except ConfigError as error:
        faults = error.faults
    else:
        try:
            read_job(imported.job())
            return
        except ConfigError as error:
            faults = imported.locate(error.faults)
    assert faults
    for fault in faults:
        assert re.match(r"their\.config:\d+:\d+: ", fault), fault
