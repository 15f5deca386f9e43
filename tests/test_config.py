"""Strict parsing of YAML into typed configs: all faults together, with the nearest name."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pydantic
import pytest
from pydantic import Field as Setting
from pydantic import model_validator

from longrec.config import Strict, apply_overrides, parse
from longrec.errors import ConfigError
from longrec.yaml_reader import read_yaml


class Fit(Strict):
    epochs: int = Setting(1, ge=1)
    lr: float = 1e-3
    amp: bool = False
    optimizer: Literal["adam", "adagrad"] = "adam"
    widths: tuple[int, ...] = ()
    note: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Fit:
        if self.amp and self.optimizer == "adagrad":
            raise ValueError("amp needs adam")
        return self


class Job(Strict):
    name: str
    fit: Fit = Fit()
    variants: dict[str, Fit] = Setting(default_factory=dict)
    steps: tuple[Fit, ...] = ()


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(content: object, prefix: str = "") -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(Job, content, "job.yaml", prefix)
    return raised.value.faults


# ---- YAML --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("12", 12),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("~", None),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00"),
        ("1h", "1h"),
        ("'1'", "1"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        (".inf", math.inf),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    read = read_yaml(write(tmp_path, f"a: {text}\n"))["a"]
    assert read == value
    assert type(read) is type(value)


def test_a_document_may_nest_and_hold_unicode(tmp_path: Path) -> None:
    path = write(tmp_path, "a: {b: [1, {c: é}]}\nd:\n  - x\n")
    assert read_yaml(path) == {"a": {"b": [1, {"c": "é"}]}, "d": ["x"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: key 'a' is already written on line 1"),
        ("x:\n  a: 1\n  a: 2\n", r"line 3: key 'a' is already written on line 2"),
        ("a: [1\n", r"not readable as YAML"),
        ("a: !!python/object:os.system x\n", r"not readable as YAML: could not determine a constructor"),
        ("", r"must be a mapping of keys to values, got nothing"),
        ("- a\n", r"must be a mapping of keys to values, got list"),
        ("a: 1\n---\nb: 2\n", r"not readable as YAML: expected a single document"),
        ("? [1, 2]\n: 3\n", r"not readable as YAML"),
        ("? {a: 1}\n: 3\n", r"not readable as YAML"),
        ("a: " + "9" * 5_000, r"not readable as YAML: a value that does not fit its tag, or a number that is too long"),
        ("a: !!int ''", r"not readable as YAML: a value that does not fit its tag"),
        ("a: !!timestamp soon", r"not readable as YAML: a value that does not fit its tag"),
        ("a: " + "[" * 60, r"line 1: more than 50 lists and mappings inside each other"),
        ("\n".join(" " * depth + "a:" for depth in range(60)), r"line 50: more than 50 lists and mappings"),
        ("a: &a [*a]", r"line 1: the alias \*a is inside its own anchor"),
        ("a: " + "x" * 2_000_000, r"characters; expected at most 2,000,000"),
        (
            "a: &a {}\n".format(["x"] * 9)
            + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghij")),
            r"line 6: more than 500,000 values, counting those of each alias",
        ),
        (
            "a: &a " + "x" * 100_000 + "\n" + "".join(f"b{number}: *a\n" for number in range(1_000)),
            r"more than 500,000 values, counting those of each alias",
        ),
    ],
)
def test_yaml_that_cannot_be_used(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read_yaml(write(tmp_path, text))


def test_an_alias_is_the_value_of_its_anchor(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "a: &a [1, {b: 2}]\nc: *a\nd: [*a]\n")) == {
        "a": [1, {"b": 2}],
        "c": [1, {"b": 2}],
        "d": [[1, {"b": 2}]],
    }


def test_an_override_is_read_with_the_same_limits() -> None:
    with pytest.raises(ConfigError, match="more than 50 lists and mappings inside each other"):
        apply_overrides({}, ["a=" + "[" * 60])
    with pytest.raises(ConfigError, match="a number that is too long"):
        apply_overrides({}, ["a=" + "9" * 5_000])


def test_many_faults_are_counted_with_few_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr("longrec.config.nearest", lambda name, valid: compared.append(name))
    with pytest.raises(ConfigError) as caught:
        parse(Fit, {f"k{number}": 1 for number in range(10_000)}, "a.yaml")
    assert len(compared) == 200
    assert caught.value.faults[-1] == "and 9,800 more"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: 1 fault\n  no such file"):
        read_yaml(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"1 fault\n  .*director"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"not readable as YAML"):
        read_yaml(tmp_path / "latin.yaml")


# ---- overrides ---------------------------------------------------------------------------------------------------


def test_overrides_reach_into_sections_and_leave_the_original_alone() -> None:
    content = {"fit": {"lr": 0.1, "widths": [1]}, "name": "a"}
    overridden = apply_overrides(content, ["fit.lr=3e-3", "fit.widths=[2, 3]", "model.name=din", "name=b=c", "note="])
    assert overridden == {"fit": {"lr": 0.003, "widths": [2, 3]}, "name": "b=c", "model": {"name": "din"}, "note": None}
    assert content == {"fit": {"lr": 0.1, "widths": [1]}, "name": "a"}
    assert apply_overrides({"fit": None}, ["fit.lr=1"]) == {"fit": {"lr": 1}}


def test_all_bad_overrides_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        apply_overrides({"name": "a"}, ["lr", "=3", "name.x=1", "a=[1", "b..c=1"])
    assert [fault.partition(": ")[0] for fault in raised.value.faults] == ["lr", "=3", "name.x=1", "a=[1", "b..c=1"]


# ---- typed -------------------------------------------------------------------------------------------------------


def test_a_config_is_frozen_and_full_of_defaults() -> None:
    job = parse(Job, {"name": "a", "fit": {"epochs": 2}}, "job.yaml")
    assert job == Job(name="a", fit=Fit(epochs=2))
    with pytest.raises(pydantic.ValidationError):
        job.name = "b"


def test_all_faults_have_path_finding_and_expectation() -> None:
    listed = faults(
        {
            "nmae": "a",
            "fit": {"epochs": "two", "lr": "fast", "amp": 3, "optimizer": "adan", "widths": 5, "ecophs": 1},
            "variants": {"x": {"epochs": 0, "note": 4}},
            "steps": [{}, {"sede": 1}, 7],
        }
    )
    assert listed == [
        "name: is required",
        "fit.epochs: must be a whole number, got 'two'",
        "fit.lr: must be a number, got 'fast'",
        "fit.amp: must be true or false, got 3",
        "fit.optimizer: must be one of 'adam' or 'adagrad'; got 'adan'",
        "fit.widths: must be a list, got 5",
        "fit.ecophs: unknown key; did you mean 'epochs'?",
        "variants.x.epochs: input should be greater than or equal to 1, got 0",
        "variants.x.note: must be text, got 4",
        "steps.1.sede: unknown key; known: epochs, lr, amp, optimizer, widths, note",
        "steps.2: must be a mapping, got 7",
        "nmae: unknown key; did you mean 'name'?",
    ]


def test_a_rule_of_the_section_itself() -> None:
    assert faults({"name": "a", "fit": {"amp": True, "optimizer": "adagrad"}}) == ["fit: amp needs adam"]


def test_a_prefix_precedes_every_path() -> None:
    assert faults({"fit": {"lr": None}}, "model") == [
        "model.name: is required",
        "model.fit.lr: must be a number, got None",
    ]
    assert faults([1], "model") == ["model: must be a mapping, got [1]"]
    assert faults("x") == ["config: must be a mapping, got 'x'"]


def test_long_values_are_cut() -> None:
    (fault,) = faults({"name": ["x" * 200]})
    assert fault.startswith("name: must be text, got ['xxx")
    assert fault.endswith("...")
    assert len(fault) < 120


@pytest.mark.parametrize("value", [1.5, "1.5"])
def test_fractions_are_no_whole_numbers(value: object) -> None:
    assert faults({"name": "a", "fit": {"epochs": value}}) == [f"fit.epochs: must be a whole number, got {value!r}"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value: float) -> None:
    assert faults({"name": "a", "fit": {"epochs": value, "lr": value}}) == [
        f"fit.epochs: must be a finite number, got {value}",
        f"fit.lr: must be a finite number, got {value}",
    ]
