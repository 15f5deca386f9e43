"""States of users: the same scores as from whole histories, whatever is recorded in between, and whatever is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live_shop import RANK, RECORD, SCHEMA, STARS, Clock, Trained, rank, record, serve, train_shop

import longrec
from longrec.errors import BundleError
from longrec.serve.service import Service
from longrec.serve.state_store import FileStates, StoredState
from longrec.serve.user_states import UserStates

FEATURES = {**SCHEMA["features"], "stars": {**SCHEMA["features"]["stars"], "available_after": "3m"}}
del FEATURES["stars"]["available_at"]
WHOLE: dict[str, Any] = {
    **SCHEMA,
    "features": FEATURES,
    "histories": {
        "seen": {"features": ["item_id", "kind", "price", "place", "stars"], "max_length": 400},
        "aside": {"features": ["item_id"], "max_length": 400, "where": {"place": "side"}},
        "liked": {"features": ["item_id"], "max_length": 400, "where": {"stars": {"at_least": 2}}},
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "hpmn": {"name": "hpmn", "embedding_dim": 4, "hidden": 5, "attention": [4], "mlp": [8], "init_std": 0.5},
    "sdim": {
        "name": "sdim",
        "embedding_dim": 4,
        "groups": 3,
        "bits": 2,
        "recent": 5,
        "width": 6,
        "heads": 2,
        "mlp": [8],
        "init_std": 0.5,
    },
    "hstu": {"name": "hstu", "embedding_dim": 4, "width": 6, "max_events": 16, "mlp": [8], "init_std": 0.5},
    "mimn": {
        "name": "mimn",
        "embedding_dim": 4,
        "width": 6,
        "hidden": 5,
        "attention": [4],
        "mlp": [8],
        "init_std": 0.5,
    },
}


# Columns of time are read as times between events alone, so that they enter a state. One history, as export is slow.
SEEN = WHOLE["histories"]["seen"]
TIMED = {**WHOLE, "histories": {"seen": {**SEEN, "features": [*SEEN["features"], "time_gap", "time_since_previous"]}}}
SCHEMAS = {"hstu": TIMED}


@pytest.fixture(scope="module", params=list(MODELS))
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    schema = SCHEMAS.get(request.param, WHOLE)
    with pytest.MonkeyPatch.context() as patch:  # so that scores depend on histories after few steps too
        patch.setattr("longrec.nn.hstu._INITIAL_STD", 1.0)
        return train_shop(tmp_path_factory.mktemp(request.param), schema, MODELS[request.param], states=True)


def get_states(service: Service, fold_at: int = 3) -> UserStates:
    states = service.served.encoder.histories.states
    assert states is not None
    states.fold_at = fold_at
    return states


@contextlib.contextmanager
def without_states(service: Service) -> Iterator[None]:
    """Read whole histories in this block."""
    histories = service.served.encoder.histories
    own, histories.states = histories.states, None
    try:
        yield
    finally:
        histories.states = own


def test_scores_equal_those_of_whole_histories(shop: Trained, state: str, tmp_path: Path) -> None:
    """Every impression is ranked with a state and without, then recorded. Its stars follow, after a restart too."""
    clock, online, used = Clock(), dict[int, float](), 0
    timeline = [(row["at"], step, number) for number, row in enumerate(shop.rows) for step in (RANK, RECORD)]
    timeline += [(row["starred_at"] or row["at"] + 9_000, STARS, n) for n, row in enumerate(shop.rows)]
    timeline.sort()
    for half in (timeline[: len(timeline) // 2], timeline[len(timeline) // 2 :]):
        with serve(shop, state, clock) as service:
            states = get_states(service)
            for clock.now, step, number in half:
                row = shop.rows[number]
                if step == RANK:
                    online[number] = rank(service, row)
                    with without_states(service):
                        assert rank(service, row) == pytest.approx(online[number], abs=2e-6)
                elif step == RECORD:
                    record(service, row)
                else:
                    record(service, row, context=None, feedback={"stars": row["stars"]})
            used += states.store.count()
    assert used > 10
    pq.write_table(pa.Table.from_pylist(shop.rows), tmp_path / "new.parquet")
    scores = pq.read_table(longrec.predict(shop.run, log=str(tmp_path / "new.parquet"), into=tmp_path / "scores"))
    served = np.array([online[number] for number in range(len(shop.rows))])
    np.testing.assert_allclose(served, scores["score"].to_numpy(), atol=2e-6)


def count_final(newest: list[dict[str, Any]], holds_newest: bool) -> int:
    """Return the number of events in a state: all, or those before the timestamp of the newest one."""
    return sum(not holds_newest or event["at"] < newest[0]["at"] for event in newest)


def test_a_history_says_how_many_of_its_events_are_folded(shop: Trained, tmp_path: Path) -> None:
    clock, row = Clock(), shop.rows[-1]
    clock.now = row["at"] + 10_000_000

    def view(service: Service, at: int) -> dict[str, Any]:
        body = {"user": row["user_id"], "at": at, "last": 1_000, "allow_unknown": True}
        histories = orjson.loads(service.read_history(orjson.dumps(body)))["histories"]
        return {own["name"]: own for own in histories}

    with serve(shop, tmp_path / "state", clock) as service:
        record(service, {**row, "place": "side"})
        states = get_states(service)
        clock.now += 1  # an event is read strictly after it was recorded
        before = view(service, clock.now)
        assert {own["folded"] for own in before.values()} == {0}
        assert states.store.count() == 0  # a reader folds nothing
        rank(service, row, clock.now)
        record(service, {**row, "at": clock.now, "item_id": "i2"})
        clock.now += 1
        after, earlier = view(service, clock.now), view(service, row["at"])
        with without_states(service):
            whole = view(service, clock.now)
        facts = service.bundle.manifest.states
    final = {name: count_final(own["newest"], facts[name].holds_newest) for name, own in before.items()}
    assert after["seen"]["folded"] == final["seen"] > 3
    assert after["seen"]["newest"][0] | {"at": None} == {
        "at": None,
        "item": "i2",
        "title": "Item 2",
        "values": after["seen"]["newest"][0]["values"],
    }
    for name, own in whole.items():
        assert own["folded"] is None
        assert after[name] == own | {"folded": final[name]}
        assert earlier[name]["folded"] == 0


def test_an_event_that_arrives_late_is_folded_again(shop: Trained, tmp_path: Path) -> None:
    """The state of its user is removed with it, before a state without it could be read."""
    clock, row = Clock(), shop.rows[-1]
    clock.now = row["at"] + 10_000_000
    with serve(shop, tmp_path / "state", clock) as service:
        states = get_states(service)
        before = rank(service, row, clock.now)
        assert states.store.count() == 1
        late = {**row, "at": row["at"] - 5_000_000, "place": "side"}
        record(service, late)
        assert states.store.count() == 0
        clock.now += 1
        after = rank(service, row, clock.now)
        assert abs(after - before) > 1e-5
        assert states.store.count() == 1
        with without_states(service):
            assert rank(service, row, clock.now) == pytest.approx(after, abs=2e-6)
            # Before it was recorded it was not visible, and a request about that time reads no state.
            assert rank(service, row, clock.now - 2) == pytest.approx(before, abs=2e-6)
        assert rank(service, row, clock.now - 2) == pytest.approx(before, abs=2e-6)


def test_a_request_about_an_earlier_time_stores_no_state_that_lacks_a_late_event(shop: Trained, tmp_path: Path) -> None:
    clock, row = Clock(), shop.rows[-1]
    clock.now = row["at"] + 10_000_000
    with serve(shop, tmp_path / "state", clock) as service:
        states = get_states(service)
        record(service, {**row, "at": row["at"] - 5_000_000})
        rank(service, row, clock.now - 1_000_000)
        assert states.store.count() == 0
        clock.now += 1
        with without_states(service):
            expected = rank(service, row, clock.now)
        assert rank(service, row, clock.now) == pytest.approx(expected, abs=2e-6)


def test_events_of_a_request_that_are_before_the_end_of_a_state(shop: Trained, tmp_path: Path) -> None:
    """They are in the order of time there too, and a state is folded up to them at most."""
    clock, row = Clock(), shop.rows[-1]
    clock.now = row["at"] + 10_000_000
    own = {"item": row["item_id"], "context": {"place": "side", "price": 1}}
    recent = [{**own, "at": row["at"] - 300_000 + second} for second in range(0, 12_000, 1_000)]
    with serve(shop, tmp_path / "state", clock) as service:
        states = get_states(service)
        with without_states(service):
            expected, without = rank(service, row, clock.now, recent=recent), rank(service, row, clock.now)
        assert abs(expected - without) > 1e-5
        assert rank(service, row, clock.now, recent=recent) == pytest.approx(expected, abs=2e-6)
        assert states.store.count() == 1
        clock.now += 1
        for _ in range(2):
            assert rank(service, row, clock.now, recent=recent) == pytest.approx(expected, abs=2e-6)
        assert rank(service, {**row, "item_id": "i0"}, clock.now) != expected  # folded to the end now
        assert rank(service, row, clock.now, recent=recent) == pytest.approx(expected, abs=2e-6)


def test_all_users_at_once(shop: Trained, tmp_path: Path) -> None:
    """States of many users in one call equal those of one after the other, and a second call folds nothing."""
    clock, row = Clock(), shop.rows[-1]
    clock.now = row["at"] + 10_000_000
    with serve(shop, tmp_path / "one", clock) as service:
        states = get_states(service)
        keys = sorted({one["user_id"] for one in shop.rows})
        for user in keys:
            rank(service, {**row, "user_id": user}, clock.now)
        single = {user: states.store.get(user) for user in keys}
    assert sum(one is not None for one in single.values()) > 10
    done = longrec.warm(shop.bundle, state=tmp_path / "all", at=clock.now)
    assert done["states"] >= 12
    assert done["bytes_per_user"] == states.bytes_per_user
    assert longrec.warm(shop.bundle, state=tmp_path / "all", at=clock.now)["folded"] == 0
    with serve(shop, tmp_path / "all", clock) as service:
        for user, one in single.items():
            other = get_states(service).store.get(user)
            if one is not None:
                assert other is not None
                first, second = np.frombuffer(one.content, np.float32), np.frombuffer(other.content, np.float32)
                np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_history_is_read_once_for_all_candidates(
    shop: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with a state scores all candidates in one run, however long the history is."""
    sizes: list[int] = []
    with serve(shop, tmp_path / "state") as service:
        program = service.served.programs["score"]
        run = program.run_outputs

        def count(inputs: Any, outputs: Any) -> Any:
            scores = run(inputs, outputs)
            sizes.append(len(scores[0]))
            return scores

        monkeypatch.setattr(program, "run_outputs", count)
        monkeypatch.setattr("longrec.serve.rank_stage._CHUNK_POSITIONS", 2)
        row = shop.rows[-1]
        items = [f"i{number}" for number in range(9)]
        rank(service, row, candidates=items, candidate_context={"price": [1.0] * 9})
    assert sizes == [9]


def test_a_history_that_depends_on_the_request_has_no_state(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="'time_gap' depends on the time of the request") as caught:
        train_shop(tmp_path, SCHEMA, MODELS["hpmn"], states=True)
    assert "'stars' becomes available at any time" in str(caught.value)


def test_a_model_without_a_state_has_none(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="DIN, which has no state of a user that an event updates"):
        longrec.export(trained.run, tmp_path / "own.bundle", states=True)
    with pytest.raises(BundleError, match="a bundle without states"):
        longrec.warm(trained.bundle, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_the_file_removes_old_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000
    monkeypatch.setattr("longrec.serve.state_store.time.time", lambda: now)
    states = FileStates(tmp_path / "states.sqlite", seconds=100, most=3)
    with contextlib.closing(states):
        states.put({user: StoredState(5, 9, bytes([user])) for user in (1, 2)})
        now += 50
        assert states.get(1) == StoredState(5, 9, b"\x01")  # and so it was used
        states.put({3: StoredState(5, 9, b"3"), 4: StoredState(5, 9, b"4")})
        assert [user for user in (1, 2, 3, 4) if states.get(user)] == [1, 3, 4]
        now += 120
        states.put({5: StoredState(7, 9, b"5")})
        assert states.count() == 1
        states.remove(5, 7)
        assert states.count() == 1
        states.remove(5, 6)
        assert states.count() == 0


def test_a_removal_waits_for_the_disk(tmp_path: Path) -> None:
    """It covers the states that were stored before it, which do not wait."""
    with contextlib.closing(FileStates(tmp_path / "states.sqlite", seconds=100, most=3)) as states:
        modes, execute = list[int](), states._database.execute

        def note(statement: str) -> None:
            if statement == "commit":
                modes.append(int(execute("pragma synchronous").fetchone()[0]))

        states._database.set_trace_callback(note)
        states.put({1: StoredState(5, 9, b"1"), 2: StoredState(5, 9, b"2")})
        states.remove(1, 3)
        states.put({1: StoredState(7, 9, b"3")})
        states.remove_all({2: 0})
        assert execute("pragma journal_mode").fetchone()[0] == "wal"  # of one log, whose syncing covers all before
        assert modes == [1, 2, 1, 2]
        assert (states.get(1), states.get(2)) == (StoredState(7, 9, b"3"), None)
