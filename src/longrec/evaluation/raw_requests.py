"""Raw values of the rows of a log, as its source has them: the time and the context of requests.

A prepared log has encoded values, and a hash or a bucket cannot be decoded. A ranker of candidates is trained on raw
values, which are therefore read from the source again.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from longrec.data.log import Log
from longrec.data.relation import Relation, name, unreadable
from longrec.data.settings import Source
from longrec.data.sort import list_column_types
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.raw_columns import list_context_columns

_REQUESTS = "_requests"


class RawLog:
    """The source of a prepared log, opened again.

    Args:
        con: DuckDB connection.
        source: ``data.log`` of the config.
        log: the prepared log.
        scratch: folder for temporary files.

    Raises:
        DataError: the source cannot be read.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, source: Source, log: Log, scratch: Path) -> None:
        schema = log.schema
        assert schema.time is not None
        self.log, self.con = log, con
        self.relation = Relation(con, "log", source, scratch, list_column_types(schema))
        self.time = read_timestamps(self.relation, schema.time.column, schema.time).sql
        self.context = [column for column in list_context_columns(log.fitted) if column in self.relation.types]

    def read(self, requests: pa.Table) -> pa.Table:
        """Return the raw time and context of requests, in their order: the time column, then those of the context.

        Args:
            requests: number (from 0), user and item (keys), event and moment (timestamps of the row, and as of which it
                is answered).

        Raises:
            DataError: the source has no such rows any more.
        """
        schema, relation = self.log.schema, self.relation
        assert schema.user is not None
        assert schema.item is not None
        assert schema.time is not None
        time, users, items = name(schema.time.column), relation.key_type(schema.user), relation.key_type(schema.item)
        context = "".join(f", {name(column)}" for column in self.context if column != schema.time.column)
        inner = (
            f"SELECT {name(schema.user)}::{users} AS _user, {name(schema.item)}::{items} AS _item, {self.time} AS _ms, "
            f"row_number() OVER () AS _row{context} FROM {relation.view}"
        )
        rows = (
            f"SELECT r.number AS _number{context} FROM {_REQUESTS} r JOIN ({inner}) l ON l._user = r.user AND "
            "l._item = r.item AND l._ms = r.event QUALIFY row_number() OVER (PARTITION BY r.number ORDER BY l._row) = 1"
        )
        times = (
            f"SELECT {self.time} AS _ms, min({time}) AS {time} FROM {relation.view} "
            f"WHERE {self.time} IN (SELECT moment FROM {_REQUESTS}) GROUP BY 1"
        )
        sql = (
            f"SELECT m.{time}{context} FROM {_REQUESTS} q JOIN ({rows}) c ON c._number = q.number "
            f"JOIN ({times}) m ON m._ms = q.moment ORDER BY q.number"
        )
        self.con.register(_REQUESTS, requests)
        try:
            table: pa.Table = self.con.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise unreadable(relation.where, error) from None
        finally:
            self.con.unregister(_REQUESTS)
        if len(table) < len(requests):
            wrong = f"{len(requests) - len(table):,} of {len(requests):,} requests are no rows of it any more"
            raise DataError(relation.where, wrong, f"the rows of {self.log.folder}", "train the run again on this log")
        return table
