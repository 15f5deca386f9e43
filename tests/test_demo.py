"""The demo on a small replacement of MovieLens: every step from files to the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longrec.demo as main_job
from longrec.cli import main

FILMS, USERS, RATINGS = 60, 80, 4_000


@pytest.fixture(scope="module")
def small_movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the three tables of the data set, with ratings that depend on the film's quality and the user's mood."""
    folder = tmp_path_factory.mktemp("ml")
    random = np.random.default_rng(3)
    title = [f"Film {n} ({1950 + n})" for n in range(FILMS)]
    quality, mood = random.normal(size=FILMS), random.normal(size=USERS)
    user = np.sort(random.integers(1, USERS + 1, RATINGS))
    film = random.integers(0, FILMS, RATINGS)
    rating = np.clip(np.round(3.4 + quality[film] + mood[user - 1] + random.normal(size=RATINGS) * 0.5), 1, 5)
    time = 978_300_000 + user * 3_600 + random.integers(0, 3_600, RATINGS)
    columns = {"user_id": user, "movie": np.array(title)[film], "rating": rating.astype(np.int64), "timestamp": time}
    pq.write_table(pa.table(columns), folder / "ratings.parquet")
    genres = [["Drama"] if n % 3 else ["Comedy", "Romance"] for n in range(FILMS)]
    movies = {"movie": title, "year": [1950 + n for n in range(FILMS)], "genres": genres}
    pq.write_table(pa.table(movies), folder / "movies.parquet")
    people = np.arange(1, USERS + 1)
    users = {"user_id": people, "gender": np.where(people % 2, "F", "M"), "age": people % 7, "occupation": people % 21}
    pq.write_table(pa.table({**users, "zip": [str(10_000 + n) for n in people]}), folder / "users.parquet")
    return folder


def test_the_demo_ends_with_a_report_and_a_bundle_that_serves(
    small_movielens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_job, "fetch_movielens_1m", lambda *_: small_movielens)
    monkeypatch.setenv("LONGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    assert main(["demo", "--folder", "story"]) == 0

    said = capsys.readouterr().out
    assert all(f"[{step}/7]" in said for step in range(1, 8))
    assert re.search(r"targets of test among 60 films: HR@10 [\d.]+, NDCG@10", said)
    assert re.search(r"of all films not rated yet, 500 retrieved and ranked in [\d.]+ ms:\n  1\. 0\.\d+  Film", said)
    assert re.search(r"online and offline scores differ by at most \de-\d\d", said)
    assert (tmp_path / "story" / "report.html").stat().st_size > 10_000
    compared = json.loads((tmp_path / "story" / "comparison.json").read_text())
    assert set(compared["runs"]) == {"deepfm", "din"}

    # the printed next steps work, and a second demo replaces its own runs
    assert main(["compare", "story/runs/deepfm", "story/runs/din", "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)["runs"]) == {"deepfm", "din"}
    assert main(["evaluate", "story/runs/din", "--split", "valid"]) == 0
    assert "AUC" in capsys.readouterr().out
    assert main(["predict", "story/runs/din", "--into", "scores.parquet"]) == 0
    assert pq.read_table("scores.parquet").column_names == ["row", "user", "time", "label", "score"]
    capsys.readouterr()
    assert main(["train", "story/din.yaml", "fit.runs=story/runs", f"data.folder={tmp_path}/cache/prepared"]) == 2
    assert "story/runs/din" in capsys.readouterr().err
