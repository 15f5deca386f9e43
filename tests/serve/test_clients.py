"""One suite for both clients: in process and over HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from longrec.errors import BundleError, LongRecError, RequestError
from longrec.exporting.inputs import make_random_tensors
from longrec.serve.client import Client, HttpClient, LocalClient, RankedItem, UserHistory, client


@pytest.fixture(scope="module", params=["in process", "over HTTP"])
def shop(request: pytest.FixtureRequest, full: Any) -> Iterator[Client]:
    target = full.bundle if request.param == "in process" else request.getfixturevalue("url")
    with client(target) as opened_client:
        assert isinstance(opened_client, LocalClient if request.param == "in process" else HttpClient)
        yield opened_client


@pytest.fixture
def good(full: Any) -> dict[str, Any]:
    return {**full.golden[0].request}


def test_golden_requests_get_their_scores(shop: Client, full: Any) -> None:
    for golden in full.golden:
        ranking = shop.rank(**golden.request)
        expected = dict(zip(golden.request["candidates"], golden.scores))
        assert [item.score for item in ranking] == sorted((item.score for item in ranking), reverse=True)
        assert {item.id: pytest.approx(item.score, abs=1e-6) for item in ranking} == expected
        assert {item.via for item in ranking} == {"request"}
        assert ranking.at == golden.request["at"]


def test_a_ranking_is_a_sequence(shop: Client, good: dict[str, Any]) -> None:
    ranking = shop.rank(**good)
    assert len(ranking) == len(good["candidates"])
    assert isinstance(ranking[0], RankedItem)
    assert ranking[:2] == ranking.items[:2]
    assert ranking[-1] == list(ranking)[-1]
    assert (ranking.new_user, ranking.new_items) == (False, ())


def test_values_of_numpy_and_datetime_are_taken(shop: Client, good: dict[str, Any]) -> None:
    usual = shop.rank(**good)
    context = {**good["context"], "shown": np.float64(good["context"]["shown"])}
    same = shop.rank(
        user=np.int64(good["user"]),  # type: ignore[arg-type]
        candidates=np.array(good["candidates"], object),
        at=datetime.fromisoformat(good["at"]),
        context={**context, "tags": np.array(context["tags"], object), "tag_weights": np.array(context["tag_weights"])},
    )
    assert same == usual
    naive = datetime.fromisoformat(good["at"]).astimezone(UTC).replace(tzinfo=None)
    assert shop.rank(**good | {"at": naive}) == usual


def test_strangers_are_ranked_when_allowed(shop: Client, good: dict[str, Any]) -> None:
    ranking = shop.rank(**good | {"user": 5, "candidates": ["i1", "nobody"], "allow_unknown": True})
    assert (ranking.new_user, ranking.new_items) == (True, ("nobody",))


def test_the_history_of_a_score(shop: Client, good: dict[str, Any]) -> None:
    whole = shop.history(good["user"], at=datetime.fromisoformat(good["at"]))
    assert all(isinstance(one, UserHistory) and one.folded is None for one in whole)
    assert sum(one.events for one in whole) > 2
    for one, newest in zip(whole, shop.history(good["user"], good["at"], last=1)):
        assert len(one.newest) == one.events  # fewer than 50
        assert [event.at for event in one.newest] == sorted((event.at for event in one.newest), reverse=True)
        assert newest.newest == one.newest[:1]
        assert all(event.at < good["at"] and event.item is not None and event.values for event in one.newest)
    recent = [{"item": "i1", "at": good["at"]}]
    with pytest.raises(RequestError, match=r"recent\[0\]\.at"):
        shop.history(good["user"], good["at"], recent=recent)
    with pytest.raises(RequestError, match="user: the unknown user 5"):
        shop.history(5)
    assert [one.events for one in shop.history(5, allow_unknown=True)] == [0] * len(whole)
    with pytest.raises(RequestError, match="last: 0 events; expected 1 to 1,000"):
        shop.history(good["user"], last=0)


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown user": ({"user": 5}, 404, "user: the unknown user 5; expected a user of the log"),
    "unknown item": ({"candidates": ["i1", "nobody"]}, 404, "candidates: 1 unknown item: 'nobody'"),
    "no candidates": ({"candidates": []}, 422, "candidates: an empty list"),
    "too many": ({"candidates": [f"x{n}" for n in range(100_001)]}, 413, "candidates: 100,001 items"),
    "twice": ({"candidates": ["i1", "i1"]}, 422, "candidates: 'i1' twice, at 0 and 1"),
    "text for integers": ({"user": "88"}, 422, "user: text, for example '88'"),
    "a float for a key": ({"user": 88.0}, 422, "user: a value of type number"),
    "NaN in the context": ({"context": {"shown": float("nan")}}, 422, "context.shown: the number nan"),
    "NaN in an array": ({"context": {"tags": np.array([1.0, np.inf])}}, 422, "context.tags[1]: the number inf"),
    "NaN for a timestamp": ({"at": float("nan")}, 422, "at: the number nan"),
    "no context": ({"context": None}, 422, "context: no 'device'"),
    "an invalid timestamp": ({"at": "noon"}, 422, "at: the text 'noon'"),
    "beyond 64 bits": ({"user": 2**70}, 422, "request: a value that JSON cannot hold"),
    "an invalid type": ({"context": {"shown": object()}}, 422, "request: a value that JSON cannot hold"),
    "invalid text": ({"user": "\ud800"}, 422, "request: a value that JSON cannot hold"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_the_same_errors_on_both_sides(shop: Client, good: dict[str, Any], fault: str) -> None:
    change, status, message = FAULTS[fault]
    with pytest.raises(RequestError) as caught:
        shop.rank(**good | change)
    assert caught.value.status == status
    assert str(caught.value).startswith(message)
    assert shop.rank(**good)


def test_faults_read_alike_word_for_word(full: Any, url: str, good: dict[str, Any]) -> None:
    messages: list[list[str]] = []
    for target in (full.bundle, url):
        with client(target) as shop:
            lines = []
            for change, _, _ in FAULTS.values():
                with pytest.raises(RequestError) as caught:
                    shop.rank(**good | change)
                lines.append(f"{caught.value.status} {caught.value}")
            messages.append(lines)
    assert messages[0] == messages[1]


def test_the_program_answers_its_own_tensors(shop: Client, full: Any, service: Any) -> None:
    inputs = service.bundle.manifest.inputs
    for candidates, events in ((1, 0), (5, 9)):
        tensors = make_random_tensors(inputs, candidates, events, 1)
        assert np.array_equal(shop.infer(tensors), service.served.programs["score"].run(tensors))
    wrong = {**tensors, "f.item_id": tensors["f.item_id"][:2]}
    with pytest.raises(RequestError, match=r"inputs.f.price: 5 entries; expected 2, as in f.item_id") as caught:
        shop.infer(wrong)
    assert caught.value.status == 422
    with pytest.raises(RequestError, match="datatype 'float64'; expected FP32"):
        shop.infer({**tensors, "f.age": tensors["f.age"].astype(np.float64)})


def test_the_served_model_is_described(shop: Client) -> None:
    metadata = shop.metadata()
    assert metadata["name"] == "din"
    assert {"name": "f.item_id", "datatype": "INT32", "shape": [-1]} in metadata["inputs"]
    assert {"name": "f.user_id", "datatype": "INT32", "shape": [1]} in metadata["inputs"]
    assert metadata["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]
    health = shop.health()
    assert (health["status"], health["users"], health["items"], health["events"]) == ("ok", 9, 40, 400)


def test_a_closed_connection_is_opened_again(url: str, good: dict[str, Any]) -> None:
    with HttpClient(url) as shop:
        first = shop.rank(**good)
        assert shop._connection.sock is not None
        shop._connection.sock.shutdown(socket.SHUT_RDWR)
        assert shop.rank(**good) == first


def test_targets_that_are_none(tmp_path: Any) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        client(tmp_path / "nothing")
    for address in ("http://", "http://host:port"):
        with pytest.raises(RequestError, match="expected http://host:port"):
            client(address)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        free = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with client(free) as shop, pytest.raises(RequestError, match=r"(?s)no response .*refused.*longrec serve") as caught:
        shop.health()
    assert caught.value.status == 503


@contextlib.contextmanager
def serve_fixed_answer(answer: bytes) -> Iterator[str]:
    """Run a server that always sends one answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    with sock:
                        sock.recv(65_536)
                        sock.sendall(answer)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops", "status 502 without a LongRec message"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n[]", "status 404 without a LongRec message"),
        (b'HTTP/1.1 404 Not Found\r\ncontent-length: 13\r\n\r\n{"error":"x"}', "status 404 without a LongRec message"),
        (b"", "no response"),
        (b"SSH-2.0\r\n\r\n", "no response"),
    ],
)
def test_other_servers_are_recognized(answer: bytes, message: str, good: dict[str, Any]) -> None:
    with serve_fixed_answer(answer) as address, client(address) as shop, pytest.raises(LongRecError, match=message):
        shop.rank(**good)


def test_an_answer_that_is_no_json(good: dict[str, Any]) -> None:
    rank: Callable[[HttpClient], Any] = lambda shop: shop.rank(**good)  # noqa: E731
    with (
        serve_fixed_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") as address,
        HttpClient(address) as shop,
    ):
        for call in (rank, HttpClient.health, HttpClient.metadata):
            with pytest.raises(RequestError, match="a response that is not from LongRec"):
                call(shop)
