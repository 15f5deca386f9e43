"""Tokens read for a request equal those that training joined, to the bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import token_shop
from numpy.typing import NDArray

from longrec.data.token_join import TokenHistory
from longrec.errors import BundleError, RequestError, StoreError, UnknownName
from longrec.exporting.bundle import Bundle, EncoderFacts
from longrec.exporting.inputs import make_random_tensors
from longrec.exporting.scale import Scale
from longrec.exporting.write import export
from longrec.features.timestamp_grammar import format_timestamp
from longrec.serve.golden_scores import score_golden
from longrec.serve.knowledge_features import key_number
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.serve.token_histories import TokenHistories
from longrec.store.token_store import TokenStore

Shop = token_shop.TokenShop


@pytest.fixture(scope="module")
def shop() -> Shop:
    return token_shop.shop()


@pytest.fixture(scope="module")
def service(shop: Shop) -> Service:
    return Service(shop.bundle)


@pytest.fixture
def live(shop: Shop, tmp_path: Path) -> Iterator[TokenStore]:
    """A copy of the tokens, opened for writing."""
    shutil.copytree(shop.tokens, tmp_path / "live", ignore=shutil.ignore_patterns("source", "lock"))
    with TokenStore.open(tmp_path / "live", writable=True) as store:
        yield store


def write(store: TokenStore, user: Any, at: int, visible: int, seed: int = 0, instance: int = 5) -> NDArray[Any]:
    """Write one more token and return its vector."""
    vector = np.random.default_rng(seed).standard_normal((1, store.info.width)).astype(np.float16).astype(np.float32)
    store.append(
        np.array([key_number(user)]),
        np.array([at]),
        instance=np.array([instance]),
        visible=np.array([visible]),
        version=np.array([0]),
        vectors=vector,
        sides={"label": np.array([2]), "stars": np.array([2])},
        available_at={"label": np.array([visible]), "stars": np.array([visible])},
    )
    return vector


def rank(service: Service, user: str, at: int, **change: Any) -> Any:
    context = {"place": "top", "price": 2.5}
    request = {"user": user, "candidates": [100, 101, 110], "at": at, "context": context, **change}
    return orjson.loads(service.answer(orjson.dumps(request)))["items"]


def test_a_token_history_is_shown_by_its_times_and_side_columns(service: Service) -> None:
    at = token_shop.START + 12 * token_shop.DAY
    answer = orjson.loads(service.read_history(orjson.dumps({"user": "u3", "at": at, "last": 1_000})))
    own = {history["name"]: history for history in answer["histories"]}
    (times, columns) = service.served.encoder.tokens.read_dated(key_number("u3"), at)["tokens"]
    tokens = own["tokens"]
    assert tokens["events"] == len(tokens["newest"]) == len(times) > 3
    assert [event["at"] for event in tokens["newest"]] == [format_timestamp(one) for one in reversed(times.tolist())]
    assert {(event["item"], event["title"]) for event in tokens["newest"]} == {(None, None)}
    values = [event["values"] for event in reversed(tokens["newest"])]
    assert {tuple(one) for one in values} == {("version", "label", "stars", "time_gap")}
    assert [one["version"] for one in values] == (columns["tokens.version"] - 2).tolist()
    assert [one["label"] for one in values] == columns["tokens.label"].tolist()
    assert own["seen"]["events"] == 8


def draw_samples(shop: Shop, count: int = 1_000) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw user rows and timestamps of rows of the log, some a little earlier or later."""
    random = np.random.default_rng(3)
    rows = random.integers(0, len(shop.log), count)
    return shop.log.user(rows), shop.log.timestamps.take(rows) + random.choice([0, 0, -1, 1, 60_000, 10**9], count)


def assert_same_lists(shop: Shop, online: TokenHistories) -> int:
    """Compare a thousand lists of the join with those read one by one, and return the number of tokens."""
    users, timestamps = draw_samples(shop)
    offline, offsets = shop.log.tokens["tokens"].columns(users, timestamps)
    for index, (user, timestamp) in enumerate(zip(users.tolist(), timestamps.tolist())):
        fetched = online.read(key_number(shop.log.users.key(user)), timestamp)["tokens"]
        assert list(fetched) == list(offline)
        for name, column in offline.items():
            own = column[offsets[index] : offsets[index + 1]]
            assert fetched[name].dtype == own.dtype
            assert fetched[name].shape == own.shape
            assert fetched[name].tobytes() == own.tobytes()
    return int(offsets[-1])


def test_14_serving_parity_embedded(shop: Shop) -> None:
    assert assert_same_lists(shop, TokenHistories(Bundle.open(shop.bundle))) > 5_000


def test_14_serving_parity_on_a_live_store(shop: Shop, live: TokenStore) -> None:
    """Some tokens are in the write-ahead log, rewritten while a reader has the store open."""
    online = TokenHistories(Bundle.open(shop.bundle), {"tokens": live.location})
    for user, tokens in list(live.scan())[:5]:
        live.append(
            np.full(len(tokens), user),
            tokens.times,
            instance=tokens.instance,
            visible=tokens.visible,
            version=tokens.version,
            vectors=tokens.vectors,
            sides=tokens.sides,
            available_at=tokens.available_at,
        )
    assert assert_same_lists(shop, online) > 5_000
    online.close()


def test_14_serving_parity_on_a_server(shop: Shop, redis_url: str) -> None:
    """The same tokens in Redis equal the join, whether the join reads the folder or the server."""
    url = f"{redis_url}/parity"
    token_shop.copy_tokens(shop.tokens, url)
    online = TokenHistories(Bundle.open(shop.bundle), {"tokens": url})
    assert assert_same_lists(shop, online) > 5_000
    users, timestamps = draw_samples(shop)
    own, offsets = shop.log.tokens["tokens"].columns(users, timestamps)
    with TokenStore.open(url) as remote:
        joined = TokenHistory(remote, shop.log.schema, "tokens", shop.log.users.keys, "tokens")
        theirs, there = joined.columns(users, timestamps)
    assert offsets.tobytes() == there.tobytes()
    assert {n: c.tobytes() for n, c in own.items()} == {n: c.tobytes() for n, c in theirs.items()}
    online.close()


def test_impressions_score_online_as_offline(shop: Shop, service: Service) -> None:
    assert service.check() < 1e-5
    rows = [int(row) for row in shop.log.rows_of("test")[::7]]
    wanted = [shop.golden(shop.log, row) for row in rows]
    for one, scores in zip(wanted, score_golden(service, wanted)):
        assert np.abs(one.expected - scores).max() < 1e-5


def test_the_bundle_says_what_it_reads(shop: Shop, service: Service) -> None:
    manifest = service.bundle.manifest
    assert manifest.tokens == {"tokens": "tokens/tokens"}
    assert "tokens/tokens/store.json" in manifest.files
    assert not any("source" in name or name.endswith("lock") for name in manifest.files)
    entry = next(entry for entry in manifest.inputs if entry.name == "h.tokens.tokens.token")
    assert (entry.datatype, entry.shape, entry.width) == ("FP32", [-1, 6], 6)
    with TokenStore.open(shop.bundle / "tokens" / "tokens") as copy, TokenStore.open(shop.tokens) as store:
        assert len(copy) == len(store)


def test_a_tampered_token_is_refused(shop: Shop, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shop.bundle, tmp_path / "bundle"))
    path = next((copy / "tokens").rglob("vector.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"tokens/tokens/segment-\d+/vector\.npy: its SHA-256"):
        Bundle.open(copy)


def test_1_future_invariance_online(shop: Shop, live: TokenStore) -> None:
    """Tokens written at or after a timestamp, or visible only then, change no response for it."""
    service = Service(shop.bundle, Settings(tokens={"tokens": live.location}))
    at = int(shop.log.timestamps.max()) - token_shop.DAY
    before = rank(service, "u3", at)
    write(live, "u3", at, at)
    write(live, "u3", at + 1, at + 1, 1)
    write(live, "u3", at - 1, at, 2)
    assert rank(service, "u3", at) == before
    write(live, "u3", at - 1, at - 1, 3, instance=6)
    assert rank(service, "u3", at) != before
    assert rank(service, "u4", at) == rank(Service(shop.bundle), "u4", at)
    service.close()


def test_a_store_that_another_writes_is_read_as_it_is_now(shop: Shop, live: TokenStore) -> None:
    service = Service(shop.bundle, Settings(tokens={"tokens": live.location}))
    at = int(shop.log.timestamps.max()) + 1_000
    before = rank(service, "u5", at)
    for number in range(3):
        write(live, "u5", at - 10 + number, at - 5, number)
        if number == 1:
            live.compact()
        now = rank(service, "u5", at)
        assert now != before
        before = now
    service.close()


def test_somebody_new_with_tokens_gets_them(shop: Shop, live: TokenStore) -> None:
    service = Service(shop.bundle, Settings(tokens={"tokens": live.location}))
    at = int(shop.log.timestamps.max()) + 1_000
    with pytest.raises(RequestError, match="the unknown user 'stranger'"):
        rank(service, "stranger", at)
    nobody = rank(service, "stranger", at, allow_unknown=True)
    assert nobody == rank(service, "other", at, allow_unknown=True)
    write(live, "stranger", at - 2, at - 1)
    assert rank(service, "stranger", at, allow_unknown=True) != nobody
    assert rank(service, "other", at, allow_unknown=True) == nobody
    service.close()


def test_stores_that_do_not_fit_are_refused(shop: Shop, live: TokenStore, tmp_path: Path) -> None:
    bundle = Bundle.open(shop.bundle)
    with pytest.raises(UnknownName, match="no history of tokens named 'token'; did you mean 'tokens'"):
        TokenHistories(bundle, {"token": live.location})
    with pytest.raises(StoreError):
        TokenHistories(bundle, {"tokens": str(tmp_path / "nowhere")})
    info = live.info
    changes: dict[str, dict[str, Any]] = {
        "numbers per token: 3; expected 6": {"width": 3, "versions": ()},
        "side columns": {"sides": {"label": 3}},
        "type of user keys: int64; expected text": {"keys": "int64"},
        "unit of time: step; expected ms": {"unit": "step"},
        r"it discloses data that was not available: it leaks \(seen\)": {"leak": "seen"},
        "its source took 'stars' as available 59s after": {"column_delays": {"stars": 59_000, "click": 0}},
    }
    for number, (says, change) in enumerate(changes.items()):
        folder = tmp_path / str(number)
        TokenStore.create(folder, type(info)(**{**vars(info), **change})).close()
        with pytest.raises(BundleError, match=says):
            TokenHistories(bundle, {"tokens": str(folder)})


def test_the_open_inference_protocol_takes_vectors(shop: Shop, service: Service) -> None:
    inputs = service.bundle.manifest.inputs
    tensors = make_random_tensors(inputs, 3, 4, 0)

    def body(**change: Any) -> bytes:
        entries = [
            {"name": e.name, "shape": list(tensors[e.name].shape), "datatype": e.datatype,
             "data": tensors[e.name].tolist()}
            for e in inputs
        ]  # fmt: skip
        entries[index].update(change)
        return orjson.dumps({"inputs": entries})

    index = [entry.name for entry in inputs].index("h.tokens.tokens.token")
    metadata = service.programs.metadata(service.model)["inputs"][index]
    assert (metadata["datatype"], metadata["shape"]) == ("FP32", [-1, 6])
    vector = tensors["h.tokens.tokens.token"]
    expected = service.served.programs["score"].run(tensors).tolist()
    for data in (vector.tolist(), vector.ravel().tolist()):  # rows, or all numbers in one list
        answer = orjson.loads(service.programs.infer(service.model, body(data=data)).content)
        assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-6)
    for change, says in {
        "shape": ({"shape": [6, 4]}, r"shape \[6, 4\] with 24 values; expected \[-1, 6\]"),
        "flat": ({"shape": [24]}, r"shape \[24\] with 24 values; expected \[-1, 6\]"),
        "none": ({"shape": []}, r"shape \[\] with 24 values"),
        "data": ({"data": vector[:3].tolist()}, r"shape \[4, 6\] with 18 values"),
        "ragged": ({"data": [[1.0], [2.0, 3.0]]}, r"shape \[4, 6\] with 3 values"),
        "mixed": ({"data": [1.0, [2.0]]}, "numbers beside lists"),
        "length": ({"shape": [3, 6], "data": vector[:3].tolist()}, "3 entries; expected|4 entries; expected 3"),
        "type": ({"datatype": "FP64"}, "datatype 'FP64'"),
        "large": ({"data": [1e300] * 24}, "a number that is too large"),
    }.values():
        with pytest.raises(RequestError, match=says) as caught:
            service.programs.infer(service.model, body(**change))
        assert caught.value.status == 422


def test_a_bundle_holds_what_its_schema_reads_or_is_refused(shop: Shop, tmp_path: Path) -> None:
    golden = read_golden(shop)
    with pytest.raises(BundleError, match="'tokens': no store to copy"):
        export(shop.model, shop.log.folder, tmp_path / "out", golden, lambda *_: [], fitted=shop.log.fitted)
    facts = EncoderFacts(0, Scale(), 6, 1)
    with pytest.raises(BundleError, match="a ranker as an encoder"):
        export(shop.model, shop.log.folder, tmp_path / "out", golden, lambda *_: [], fitted=shop.log.fitted,
               encoder=facts)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def read_golden(shop: Shop) -> list[Any]:
    return Bundle.open(shop.bundle).golden
