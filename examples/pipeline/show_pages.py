"""Pages of films.yaml for every user, clicks on them, and a log that joins both.

    python show_pages.py

Asks for pages in this process, as a server would answer and log them. Then flips a coin for each shown film: a user
clicks on a film of a favorite genre with probability 0.3, and on another one with 0.05. Writes clicks.parquet, and
shown.parquet with the columns that an off-policy estimate reads.
"""

from __future__ import annotations

import duckdb

import longrec

USERS, PAGES, FILMS = 400, 2, 6


def show() -> None:
    """Answer requests of all users, and log what they are shown."""
    with longrec.open_pipeline("films.yaml", keep_log=True) as films:
        for _ in range(PAGES):
            for user in range(USERS):
                films.recommend(user, k=FILMS)


def click() -> None:
    """Write which of the shown films were clicked."""
    duckdb.sql("""
        CREATE TABLE genre_counts AS
        SELECT user_id, unnest(genres) AS genre, count(*) AS films
        FROM 'ratings.parquet' JOIN 'movies.parquet' USING (movie) GROUP BY user_id, genre
    """)
    duckdb.sql("""
        COPY (
            SELECT request, item FROM 'impressions/*.parquet' AS shown
            JOIN 'movies.parquet' AS movies ON shown.item = movies.movie
            JOIN (SELECT user_id, max_by(genre, films, 2) AS favorites FROM genre_counts GROUP BY user_id) AS users
            ON shown.user = users.user_id
            WHERE hash(request, item) % 100 < if(list_has_any(genres, favorites), 30, 5)
        ) TO 'clicks.parquet'
    """)


def join() -> None:
    """Write the log of what was shown, with its clicks and the probabilities of pages that never explore."""
    # Most pages do not explore. So exactly the items of the page without exploration have a propensity above 0.5.
    duckdb.sql("""
        COPY (
            SELECT shown.*, clicks.item IS NOT NULL AS click, CAST(propensity > 0.5 AS DOUBLE) AS target
            FROM 'impressions/*.parquet' AS shown LEFT JOIN 'clicks.parquet' AS clicks USING (request, item)
            WHERE propensity IS NOT NULL
        ) TO 'shown.parquet'
    """)
    print(
        duckdb.sql("""
        SELECT position, bucket, count(*) AS shown, sum(explored::INTEGER) AS explored, avg(click::INTEGER) AS clicks,
            min(propensity) AS smallest_propensity
        FROM 'shown.parquet' GROUP BY position, bucket ORDER BY position, bucket
    """)
    )


if __name__ == "__main__":
    show()
    click()
    join()
