"""A log of film ratings in the form of MovieLens, small enough to train on in a minute.

    python make_log.py

Writes ratings.parquet, movies.parquet and users.parquet. Every film has one or two genres, every user likes two of
them, and watches films of one genre in a row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, FILMS, RATINGS = 400, 600, 60
GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Romance", "Thriller", "Western")
START = 1_700_000_000


def main() -> None:
    """Write the three tables."""
    rng = np.random.default_rng(7)
    genre, second = rng.integers(0, len(GENRES), (2, FILMS))
    popularity = rng.zipf(1.6, FILMS).clip(1, 100).astype(float)
    rows: list[tuple[int, int, int, int]] = []
    for user in range(USERS):
        likes = rng.choice(len(GENRES), 2, replace=False)
        seen = np.zeros(FILMS, bool)
        at, current = START + int(rng.integers(0, 20 * 86_400)), likes[0]
        for _ in range(RATINGS):
            current = rng.choice(likes) if rng.random() < 0.2 else current
            weight = np.where(seen, 0.0, popularity) * np.where(genre == current, 20.0, 1.0)
            film = int(rng.choice(FILMS, p=weight / weight.sum()))
            seen[film] = True
            liked = genre[film] in likes or second[film] in likes
            at += int(rng.integers(60, 3 * 3_600))
            rows.append((user, film, at, int(rng.choice([3, 4, 5]) if liked else rng.choice([1, 2, 3, 4]))))
    user, film, at, rating = (list(column) for column in zip(*rows))
    pq.write_table(pa.table({"user_id": user, "movie": film, "timestamp": at, "rating": rating}), "ratings.parquet")
    names = [list(dict.fromkeys([GENRES[a], GENRES[b]])) for a, b in zip(genre, second)]
    movies = {"movie": np.arange(FILMS), "year": rng.integers(1950, 2026, FILMS), "genres": names}
    pq.write_table(pa.table(movies), "movies.parquet")
    pq.write_table(pa.table({"user_id": np.arange(USERS), "age": rng.integers(15, 75, USERS)}), "users.parquet")


if __name__ == "__main__":
    main()
