"""Tests of the token store, in a folder and in a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.token_store import TokenInfo, Tokens, TokenStore, Version

INFO = TokenInfo(
    width=8,
    slots=2,
    codec="fp16",
    sides={"label": 3, "dwell": 1_000},
    unit="ms",
    keys="int64",
    visibility_delay=5,
    leak="",
    standardized=True,
    source={"run": "iat", "config": {"lr": 0.1}},
    versions=(Version(0, 10, 20, 5, [0.5] * 8, [2.0] * 8),),
)
NEVER = 2**63 - 1


def tokens(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    times = random.integers(1_700_000_000_000, 1_700_000_000_020, count)
    return {
        "users": random.integers(-3, 3, count) * 2**60,
        "times": times,
        "instance": random.permutation(count) + 2**62,
        "visible": times + random.integers(0, 2**40, count),
        "version": np.zeros(count, np.int64),
        "vectors": random.integers(-100, 100, (count, 8)).astype(np.float32) / 8,
        "sides": {"label": random.integers(0, 4, count), "dwell": random.integers(0, 1_001, count)},
        "available_at": {"label": times + random.integers(0, 100, count), "dwell": np.full(count, NEVER)},
    }


def put(store: TokenStore, columns: dict[str, Any], *, how: Callable[..., None] | None = None) -> None:
    rest = {name: columns[name] for name in columns if name not in ("users", "times")}
    (how or store.append)(columns["users"], columns["times"], **rest)


def select_rows(columns: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {
        name: {side: own[rows] for side, own in values.items()} if isinstance(values, dict) else values[rows]
        for name, values in columns.items()
    }


def assert_equal_tokens(tokens_read: Tokens, columns: dict[str, Any], rows: NDArray[np.int64]) -> None:
    expected = select_rows(columns, rows)
    for name in ("times", "instance", "visible", "version", "vectors"):
        assert np.array_equal(getattr(tokens_read, name), expected[name]), name
    for name in columns["sides"]:
        assert np.array_equal(tokens_read.sides[name], expected["sides"][name])
        assert np.array_equal(tokens_read.available_at[name], expected["available_at"][name])
    kinds = [
        tokens_read.offsets,
        tokens_read.times,
        tokens_read.instance,
        tokens_read.visible,
        tokens_read.version,
        tokens_read.vectors,
    ]
    assert [array.dtype for array in kinds] == [np.int64] * 4 + [np.int32, np.float32]
    assert {array.dtype for array in tokens_read.sides.values()} == {np.dtype(np.int32)}
    assert {array.dtype for array in tokens_read.available_at.values()} == {np.dtype(np.int64)}


def find_rows(columns: dict[str, Any], user: int, before: int = NEVER, n: int = 10**6) -> NDArray[np.int64]:
    order = np.lexsort((columns["instance"], columns["times"]))
    own = order[(columns["users"][order] == user) & (columns["times"][order] < before)]
    return own[max(0, len(own) - n) :]


@pytest.fixture(params=["folder", "server"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "tokens")
        return
    from longrec.store.remote_store import RemoteStore

    where = f"{request.getfixturevalue('redis_url')}/tokens"
    yield where
    with RemoteStore.open(where, writable=True) as store:
        store.remove()


def test_what_was_written_is_read(location: str) -> None:
    columns = tokens(400)
    with TokenStore.create(location, INFO) as store:
        put(store, select_rows(columns, slice(300)))
        store.compact()
        put(store, select_rows(columns, slice(300, None)))
        assert len(store) == 400
    with TokenStore.open(location) as store:
        assert store.info == INFO
        users, timestamps = np.array([0, 2**60, 77, -3 * 2**60]), 1_700_000_000_010 + np.arange(4)
        tokens_read = store.last(users, timestamps, 12)
        whole = [
            find_rows(columns, user, timestamp, 12) for user, timestamp in zip(users.tolist(), timestamps.tolist())
        ]
        assert np.diff(tokens_read.offsets).tolist() == [len(rows) for rows in whole]
        assert len(whole[2]) == 0
        assert_equal_tokens(tokens_read, columns, np.concatenate(whole))
        assert_equal_tokens(
            store.last(2**60, 1_700_000_000_010, 12), columns, find_rows(columns, 2**60, 1_700_000_000_010, 12)
        )
        tokens_by_user = dict(store.scan())
        assert list(tokens_by_user) == sorted(set(columns["users"].tolist()))
        for user, own in tokens_by_user.items():
            assert_equal_tokens(own, columns, find_rows(columns, user))


def test_renamed_fields_keep_their_stored_names(tmp_path: Path) -> None:
    TokenStore.create(tmp_path / "tokens", INFO).close()
    content = json.loads((tmp_path / "tokens" / "store.json").read_text())
    stored = content["attributes"]
    assert (stored["lag"], stored["standardised"]) == (5, True)
    assert not {"visibility_delay", "standardized"} & set(stored)
    assert list(stored) == [
        "format", "width", "slots", "codec", "sides", "unit", "keys", "lag", "leak", "column_delays", "standardised",
        "source", "versions",
    ]  # fmt: skip
    assert {"known.label", "known.dwell"} <= set(
        json.loads((tmp_path / "tokens" / "store.json").read_text())["columns"]
    )


def test_11_a_retried_append_never_multiplies(location: str) -> None:
    """Join cardinality: a token that is written again has the newest side ids and timestamps."""
    columns = tokens(60)
    with TokenStore.create(location, INFO) as store:
        put(store, columns)
        put(store, columns)
        late = {**columns, "sides": {**columns["sides"], "label": np.full(60, 2)}}
        put(store, select_rows(late, slice(20)))
        store.compact()
        put(store, select_rows(late, slice(20, None)))
        assert len(store) == 60
        for user, own in store.scan():
            assert_equal_tokens(own, late, find_rows(late, user))


def test_a_load_is_an_append(location: str) -> None:
    columns = tokens(300)
    with TokenStore.create(location, INFO) as store:
        order = np.lexsort((columns["instance"], columns["times"], columns["users"]))
        put(store, select_rows(columns, order), how=store.load)
        assert len(store) == 300
        for user, own in store.scan():
            assert_equal_tokens(own, columns, find_rows(columns, user))


def test_only_the_requested_columns_are_read(location: str) -> None:
    columns = tokens(50)
    with TokenStore.create(location, INFO) as store:
        put(store, columns)
        rows = find_rows(columns, 2**60)
        tokens_read = store.last(2**60, NEVER, 99, ["vectors", "label"])
        assert np.array_equal(tokens_read.vectors, columns["vectors"][rows])
        assert (list(tokens_read.sides), list(tokens_read.available_at)) == (["label"], ["label"])
        assert (
            len(tokens_read.instance)
            == len(tokens_read.visible)
            == len(tokens_read.version)
            == 0
            < len(tokens_read.times)
            == len(tokens_read)
        )
        assert store.last(2**60, NEVER, 99, ["visible"]).vectors.shape == (0, 8)
        with pytest.raises(StoreError, match="no column 'lable'; expected vectors, instance, visible, version, label"):
            store.last(2**60, NEVER, 99, ["lable"])


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_other_codecs(location: str, codec: str) -> None:
    columns = tokens(80)
    with TokenStore.create(location, replace(INFO, codec=codec)) as store:
        put(store, columns)
        store.compact()
        tokens_read = store.last(2**60, NEVER, 99)
        bound = 0 if codec == "fp32" else 12.5 / 254 + 1e-4
        assert np.abs(tokens_read.vectors - columns["vectors"][find_rows(columns, 2**60)]).max() <= bound


def test_codes_are_read_with_the_codebooks_of_their_version(location: str) -> None:
    random = np.random.default_rng(0)
    books = random.standard_normal((2, 2, 3, 16, 4)).astype(np.float32)
    columns = tokens(90)
    columns["version"] = np.arange(90) % 2
    codes = random.integers(0, 16, (90, 6)).astype(np.uint8)
    vectors = np.stack([
        np.concatenate([sum(books[v, s, m, c[3 * s + m]] for m in range(3)) for s in range(2)])
        for v, c in zip(columns["version"], codes)
    ])  # fmt: skip
    with TokenStore.create(location, replace(INFO, codec="codes", versions=())) as store:
        with pytest.raises(StoreError, match="version 0; expected none yet"):
            put(store, {**columns, "vectors": codes})
        assert len(store.last(2**60, NEVER, 99)) == len(store) == 0
        store.add_version(Version(0), books[0])
        with pytest.raises(StoreError, match="no codebooks; expected those that codec codes needs"):
            store.add_version(Version(1))
        with pytest.raises(StoreError, match=r"float32 \[2, 2, 16, 4\]; expected finite \[2, 3, at most 256, 4\]"):
            store.add_version(Version(1), books[1][:, :2])
        reader = TokenStore.open(location)
        store.add_version(Version(1), books[1])
        put(store, {**columns, "vectors": codes})
        store.compact()
        reader.refresh()
        for one in (store, reader):
            tokens_read = one.last(2**60, NEVER, 99)
            assert np.allclose(tokens_read.vectors, vectors[find_rows(columns, 2**60)], atol=1e-5)
            only = one.last(np.array([2**60, 0]), NEVER, 99, ["vectors"])
            assert np.allclose(only.vectors[: len(tokens_read)], tokens_read.vectors)
        near = {
            **select_rows(columns, slice(1)),
            "instance": columns["instance"][:1] + 1_000,
            "vectors": vectors[:1] + 0.001,
        }
        put(store, near)  # vectors are encoded as codes
        now = dict(store.scan())[int(columns["users"][0])]
        at = now.instance.tolist().index(int(near["instance"][0]))
        assert np.abs(now.vectors[at] - vectors[0]).max() < 3
        old = TokenStore.open(location)
        store.add_version(Version(2), books[0])
        put(store, {**near, "version": np.array([2]), "vectors": codes[:1], "times": near["times"] + 1})
        old.backend.refresh()  # the tokens are read, the version is not yet loaded
        assert 2 in dict(old.scan())[int(columns["users"][0])].version
        old.close()
        reader.close()
    with pytest.raises(StoreError, match="versions without codebooks"):
        TokenStore.create(location + "2", replace(INFO, codec="codes"))


def test_versions_are_added_in_order(location: str) -> None:
    with TokenStore.create(location, replace(INFO, versions=())) as store:
        assert (store.info.spec().versions, store.info.spec().mixed) == (0, False)
        first, second = Version(0, 1, 2, 3, [0.0] * 8, [1.0] * 8), Version(1, 4, 5)
        store.add_version(first)
        reader = TokenStore.open(location)
        for version, message in (
            (first, "number 0; expected 1, the next one"),
            (Version(3), "number 3; expected 1, the next one"),
            (Version(1, mean=[0.0] * 8), "a mean without a deviation"),
            (Version(1, mean=[0.0] * 7, std=[1.0] * 7), "mean of 7 numbers; expected 8 finite numbers"),
            (Version(1, mean=[0.0] * 8, std=[1.0] * 7 + [0.0]), "a deviation of 0.0; expected more than 0"),
        ):
            with pytest.raises(StoreError, match=message):
                store.add_version(version)
        with pytest.raises(StoreError, match="codebooks; expected those that codec fp16 needs"):
            store.add_version(second, np.zeros((2, 1, 4, 4), np.float32))
        store.add_version(second)
        assert reader.info.versions == (first,)
        reader.refresh()
        assert reader.info == store.info == replace(INFO, versions=(first, second))
        reader.close()
    assert replace(INFO, versions=(first, second), standardized=False).spec().mixed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": np.array([1])}, "version 1; expected 0 to 0\n.*Add it with add_version first"),
        ({"version": np.array([0.5])}, "version of type float64"),
        ({"sides": {"label": np.array([4]), "dwell": np.array([0])}}, "side column 'label' 4; expected 0 to 3"),
        ({"sides": {"label": np.array([-1]), "dwell": np.array([0])}}, "side column 'label' -1; expected 0 to 3"),
        ({"sides": {"label": np.array([0])}}, "sides label; expected dwell, label"),
        ({"available_at": {}}, "available_at of no column; expected dwell, label"),
        ({"visible": np.array([1, 2])}, "1 times, 2 visible"),
        ({"vectors": np.full((1, 8), np.nan, np.float32)}, "NaN or infinity in row 0"),
        ({"vectors": np.zeros((1, 9), np.float32)}, r"expected float32 \[n, 8\]"),
        ({"vectors": np.zeros((2, 8), np.float32)}, "1 keys, 1 times"),
    ],
)
def test_wrong_tokens_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with TokenStore.create(tmp_path / "tokens", INFO) as store:
        with pytest.raises(StoreError, match=message):
            put(store, {**tokens(1), **change})
        assert len(store) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "fp8"}, "codec 'fp8'; expected fp32, fp16, int8, codes"),
        ({"slots": 3}, "8 numbers in 3 slots; expected slots of equal width"),
        ({"unit": "s"}, "times in 's'; expected ms or step"),
        ({"keys": "uuid"}, "users by 'uuid'"),
        ({"visibility_delay": -1}, "a visibility delay of -1"),
        ({"sides": {"a/b": 3}}, "side column 'a/b' of 3 ids"),
        ({"versions": (Version(1),)}, "number 1; expected 0"),
    ],
)
def test_an_invalid_description_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        replace(INFO, **change)


def test_what_is_no_token_store_is_refused(tmp_path: Path) -> None:
    from longrec.store.lsm_store import LsmStore

    LsmStore.create(tmp_path / "plain", {"a": np.int64}, None).close()
    with pytest.raises(StoreError, match="format None; expected longrec-tokens-1"):
        TokenStore.open(tmp_path / "plain")
    TokenStore.create(tmp_path / "tokens", INFO).close()
    path = tmp_path / "tokens" / "store.json"
    content = json.loads(path.read_text())
    content["attributes"]["more"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not readable .*'more'"):
        TokenStore.open(tmp_path / "tokens")
    del content["attributes"]["more"]
    content["attributes"]["width"] = 4
    content["attributes"]["versions"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="other columns than those of its tokens"):
        TokenStore.open(tmp_path / "tokens")
    with pytest.raises(StoreError, match="no readable store.json"):
        TokenStore.open(tmp_path / "none")


def test_a_token_of_32_float16_numbers_takes_at_most_85_bytes(tmp_path: Path) -> None:
    """8 bytes for the timestamp, 64 for the vector, 8 for the instance, and one each for small differences."""
    info = TokenInfo(width=32, sides={"label": 3}, versions=(Version(0),))
    count, random = 20_000, np.random.default_rng(0)
    times = np.sort(random.integers(0, 10**12, count))
    with TokenStore.create(tmp_path / "tokens", info) as store:
        store.load(
            np.arange(count) // 400,
            times,
            instance=random.integers(0, 2**62, count),
            visible=times,
            version=np.zeros(count, np.int64),
            vectors=random.standard_normal((count, 32)).astype(np.float32),
            sides={"label": np.ones(count, np.int64)},
            available_at={"label": times + 100},
        )
    size = sum(path.stat().st_size for path in (tmp_path / "tokens").rglob("*") if path.is_file())
    assert size / count < 8 + 64 + 8 + 4 + 1
