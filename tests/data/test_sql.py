"""A query of a config is one SELECT statement that stays in its parentheses."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from longrec.data.sql import wrap_query
from longrec.errors import DataError


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 7 AS a",
        "SELECT 7 AS a;",
        "SELECT 7 AS a\n;\n",
        "SELECT 7 AS a -- ) the end",
        "SELECT 7 AS a /* ; */ -- ;",
        "-- first\nFROM (VALUES (7)) t(a)",
        "WITH t AS (SELECT 7 AS a) SELECT * FROM t",
        "(SELECT 7 AS a) UNION (SELECT 7 AS a)",
        "SELECT a FROM (SELECT 7 AS a, '); DROP TABLE kept; --' AS b)",
    ],
)
def test_one_select_is_read_in_parentheses(query: str) -> None:
    with duckdb.connect() as con:
        assert con.execute(f"SELECT * FROM ({wrap_query(con, query, 'log')})").fetchall() == [(7,)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT 1) UNION (SELECT 2", "syntax error"),
        ("SELECT 1); DROP TABLE kept; (SELECT 2", "syntax error"),
        ("SELECT 1) --", "syntax error"),
        ("SELECT 1 /*", "unterminated"),
        ("SELECT 1; -- done", "syntax error"),
        ("SELECT 1; DROP TABLE kept", r"2 statements \(SELECT, DROP\); expected one SELECT statement"),
        ("DROP TABLE kept", "a statement of type DROP"),
        ("COPY (SELECT 1) TO 'written.csv'", "a statement of type COPY"),
        ("ATTACH 'other.db'", "a statement of type ATTACH"),
        ("SET threads = 9", "a statement of type SET"),
        ("INSTALL httpfs", "a statement of type LOAD"),
        ("-- nothing", "no statement"),
        ("SELECT ?", "a parameter without a value"),
    ],
)
def test_what_leaves_its_parentheses_is_refused(
    query: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as con:
        con.execute("CREATE TABLE kept AS SELECT 1")
        with pytest.raises(DataError, match=message) as caught:
            wrap_query(con, query, "log")
        assert caught.value.where == "log"
        assert con.execute("SELECT count(*) FROM kept").fetchone() == (1,)
    assert not list(tmp_path.iterdir())
