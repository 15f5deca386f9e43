"""Tests of atomic writes of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrec.training.folder import write_atomically


def test_a_store_takes_its_name_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "tokens" / "v1"
    with write_atomically(target) as partial_path:
        Path(partial_path).mkdir(parents=True)
        (Path(partial_path) / "store.json").write_text("{}")
        assert not target.exists()
    assert (target / "store.json").exists()
    assert [path.name for path in target.parent.iterdir()] == ["v1"]


def test_a_store_that_was_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with write_atomically(tmp_path / "v1") as partial_path:
            Path(partial_path).mkdir()
            (Path(partial_path) / "store.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_and_what_is_an_address_stay_as_they_are(tmp_path: Path) -> None:
    with write_atomically(tmp_path) as partial_path:
        assert partial_path == tmp_path
    with write_atomically("redis://localhost/tokens") as partial_path:
        assert partial_path == "redis://localhost/tokens"
