"""Ask the bundle for the next items of a user, as its server answers.

    python recommend.py --user 11

Prints the items as text, and how many arrivals are on the pages of 100 users.
"""

from __future__ import annotations

import argparse

import duckdb

import longrec

PAGES = 100


def main() -> None:
    """Print a page of items."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--user", type=int, default=11, help="key of the user")
    parser.add_argument("--k", type=int, default=8, help="items of a page")
    options = parser.parse_args()
    texts, arrivals = (
        dict(duckdb.sql(f"SELECT item_id, text FROM '{name}.parquet'").fetchall()) for name in ("items", "arrivals")
    )
    texts |= arrivals
    taken = f"SELECT item_id FROM 'log.parquet' WHERE user_id = {options.user} ORDER BY timestamp DESC LIMIT 4"
    users = duckdb.sql(f"SELECT DISTINCT user_id FROM 'log.parquet' ORDER BY user_id LIMIT {PAGES}").fetchall()
    print(f"user {options.user} took, the latest first")
    for (key,) in duckdb.sql(taken).fetchall():
        print(f"        {texts[key]}")
    print("and may take next")
    with longrec.client("unirec.bundle") as shop:
        for item in shop.recommend(user=options.user, k=options.k):
            print(f"{item.score:7.2f} {texts[item.id]}{' (new)' if item.id in arrivals else ''}")
        pages = [shop.recommend(user=user, k=options.k) for (user,) in users]
    new = sum(item.id in arrivals for page in pages for item in page)
    print(f"new items on the pages of {len(pages)} users: {new} of {sum(map(len, pages))}")


if __name__ == "__main__":
    main()
