"""Give the arrivals to the bundle, with the codes that the frozen tokenizer has assigned.

    python add_items.py

Writes changes.parquet, the rows for ``longrec catalog unirec.bundle changes.parquet``.
"""

from __future__ import annotations

import duckdb

CHANGES = """
SELECT item_id, text, category, code_1, code_2, code_3, code_4
FROM 'arrivals.parquet' AS arrivals JOIN 'tokens/items.parquet' AS codes USING (item_id)
"""


def main() -> None:
    """Write the table."""
    rows = duckdb.sql(CHANGES).to_arrow_table()
    duckdb.sql("COPY rows TO 'changes.parquet'")
    print(f"changes.parquet: {len(rows):,} rows")


if __name__ == "__main__":
    main()
