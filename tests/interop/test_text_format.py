"""Protobuf's text format: every spelling, and the position of every node."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrec.errors import ConfigError
from longrec.interop.text_format import Field, Message, Number, Position, Text, Word, as_float, parse, read


def plain(message: Message) -> list[tuple[str, object]]:
    """Return names and values without positions."""
    return [(f.name, plain(f.value) if isinstance(f.value, Message) else f.value.value) for f in message.fields]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  # nothing but a comment", []),
        ("a { }", [("a", [])]),
        ("a: { }", [("a", [])]),
        ("a : { b: 1 }", [("a", [("b", 1)])]),
        ("a < b: 1 >", [("a", [("b", 1)])]),
        ("a: <b: 1>", [("a", [("b", 1)])]),
        ("a: 1 b: 2", [("a", 1), ("b", 2)]),
        ("a: 1, b: 2; c: 3,", [("a", 1), ("b", 2), ("c", 3)]),
        ("a: [1, 2, 3]", [("a", 1), ("a", 2), ("a", 3)]),
        ("a: []", []),
        ("a: [1, 2,]", [("a", 1), ("a", 2)]),
        ("a [{b: 1}, {b: 2}]", [("a", [("b", 1)]), ("a", [("b", 2)])]),
        ("a: 'it' b: \"it\"", [("a", "it"), ("b", "it")]),
        ("a: 'one ' \"two\"\n 'three'", [("a", "one twothree")]),
        ("a: '\\001' b: '\\x1f' c: '\\t\\n\\\\\\'\\\"'", [("a", "\x01"), ("b", "\x1f"), ("c", "\t\n\\'\"")]),
        ("a: '\\345\\245\\275' b: '\\u597d' c: '好'", [("a", "好"), ("b", "好"), ("c", "好")]),
        ("a: '#not a comment' # a comment", [("a", "#not a comment")]),
        ("a: 0x1F b: 017 c: 0 d: -12", [("a", 31), ("b", 15), ("c", 0), ("d", -12)]),
        ("a: 1e-3f b: .5 c: 1. d: 2.5E2", [("a", 1e-3), ("b", 0.5), ("c", 1.0), ("d", 250.0)]),
        ("a: - 4 b: 1f", [("a", -4), ("b", 1.0)]),
        ("a: true b: DEEP c: inf d: -inf", [("a", "true"), ("b", "DEEP"), ("c", "inf"), ("d", "-inf")]),
    ],
)  # fmt: skip
def test_every_spelling_reads(text: str, expected: list[tuple[str, object]]) -> None:
    assert plain(parse(text)) == expected


def test_every_node_has_its_position() -> None:
    tree = parse("a: 1\n  b {\n    c: 'x'\n    d: [DEEP,\n -2]\n  }\n")
    b = tree.fields[1]
    assert tree.fields[0] == Field("a", Number(1, Position(1, 4)), Position(1, 1))
    assert b.position == Position(2, 3)
    assert isinstance(b.value, Message)
    assert b.value.position == Position(2, 5)
    assert b.value.fields == (
        Field("c", Text("x", Position(3, 8)), Position(3, 5)),
        Field("d", Word("DEEP", Position(4, 9)), Position(4, 9)),
        Field("d", Number(-2, Position(5, 2)), Position(5, 2)),
    )


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("a", "1:2", "after a; expected ':'"),
        ("a: ", "1:4", "the end of the file; expected a value"),
        ("a: 1\nb {\n  c: 2\n", "4:1", "the end of the file; expected a field name or '}'"),
        ("a { b: 1 >", "1:10", "'>'; expected a field name or '}'"),
        ("a: 1 }", "1:6", "'}' with nothing open"),
        ("a: 'it", "1:4", "does not end on its line"),
        ("a: 'it\nb: 1'", "1:4", "does not end on its line"),
        ("a: '\\q'", "1:4", "the escape \\q"),
        ("a: '\\400'", "1:4", "the escape \\400"),
        ("a: '\\377'", "1:4", "make no UTF-8"),
        ("a: '\\ud800'", "1:4", "surrogate"),
        ("a: '\\Uffffffff'", "1:4", "U+10FFFF"),
        ("a: 12x", "1:4", "'12x', which is no number"),
        ("a: 089", "1:4", "089, which is no number"),
        ("a: 1.2.3", "1:4", "'1.2.3', which is no number"),
        ("a: -DEEP", "1:5", "'DEEP' after '-'"),
        ("a: [1 2]", "1:7", "in a list; expected ','"),
        ("a [1, 2]", "1:3", "expected ':' before it"),
        ("a: @", "1:4", "the character '@'"),
        ("[a.b]: 1", "1:1", "a plain field name"),
        ("1: 2", "1:1", "'1'; expected a field name"),
        ("a {" * 102, "1:303", "more than 100 messages"),
        ("a: " + "9" * 401, "1:4", "401 digits"),
    ],
)  # fmt: skip
def test_a_fault_names_its_position(text: str, position: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "my.config")
    (fault,) = raised.value.faults
    assert fault.startswith(f"my.config:{position}: ")
    assert says in fault


def test_a_file_is_of_bounded_size_and_its_faults_are_short(tmp_path: Path) -> None:
    (tmp_path / "long.config").write_text("a: 1 " * 1_600_001)
    with pytest.raises(ConfigError, match="is longer than 8,000,000 characters"):
        read(tmp_path / "long.config")
    with pytest.raises(ConfigError) as caught:
        parse("a: " + "1x" * 100_000)
    assert len(str(caught.value)) < 1_000


def test_files_are_utf_8_and_there(tmp_path: Path) -> None:
    (tmp_path / "a.config").write_bytes(b"\xef\xbb\xbfa: 1")
    assert plain(read(tmp_path / "a.config")) == [("a", 1)]
    (tmp_path / "b.config").write_bytes(b"a: 1\nb: '\xff'")
    with pytest.raises(ConfigError, match="b.config:2:1: a byte that is not UTF-8"):
        read(tmp_path / "b.config")
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "c.config")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)


def test_float_fields_accept_inf_and_nan() -> None:
    at = Position(1, 1)
    assert as_float(Word("-Infinity", at)) == -math.inf
    assert math.isnan(as_float(Word("nan", at)) or 0.0)
    assert as_float(Word("DEEP", at)) is None
    assert as_float(Number(10**400, at)) == math.inf
    assert as_float(Number(3, at)) == 3.0


@given(st.text(alphabet="ab01.-{}<>[]:,;'\"\\#\n x_eF", max_size=40))
def test_any_text_reads_or_is_our_error(text: str) -> None:
    try:
        parse(text, "my.config")
    except ConfigError as error:
        assert error.faults[0].startswith("my.config:")  # noqa: PT017 - either outcome is right


@given(st.text(max_size=30))
def test_what_is_quoted_comes_back(text: str) -> None:
    quoted = "".join(f"\\{byte:03o}" for byte in text.encode())
    assert plain(parse(f"a: '{quoted}'")) == [("a", text)]
