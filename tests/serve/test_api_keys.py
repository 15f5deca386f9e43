"""Tests of the API keys of a server and of its clients."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from in_process import InProcess, read_error
from openapi_spec_validator import validate

from longrec.errors import ConfigError, RequestError
from longrec.serve.access import Access, AccessOptions
from longrec.serve.api_keys import ADMIN, API_KEYS, MOST, ORDINARY, is_open_to_others, parse_keys, read_keys
from longrec.serve.app import App
from longrec.serve.client import API_KEY, client
from longrec.serve.current_service import MAX_RELOADS
from longrec.serve.service import Service

KEY, OTHER, CHIEF = "reader-0123456789abcdef", "second-0123456789abcdef", "admin-0123456789abcdef=="
WRONG = "wrong-0123456789abcdef"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (API_KEYS, API_KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# readers\n{KEY}\n\n  {OTHER}  \nadmin {CHIEF}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def http(service: Service, key_file: Path) -> Iterator[InProcess]:
    """An application with keys."""
    with InProcess(App(service, access=Access(AccessOptions(str(key_file))))) as http:
        yield http


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "path", ["/", "/health", "/metrics", "/example", "/openapi.json", "/v2", "/v2/models/x", "/nothing", "/rank/"]
)
def test_every_page_needs_a_key(http: InProcess, path: str) -> None:
    answer = http.get(path)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert read_error(answer)["found"] == "no API key"
    assert http.get(path, **bearer(KEY)).status != 401


def test_every_route_needs_a_key_but_those_of_probes(http: InProcess) -> None:
    document = http.get("/openapi.json", **bearer(KEY)).json()
    validate(document)
    (scheme,) = document["components"]["securitySchemes"]
    routes = [(path, method) for path, one in document["paths"].items() for method in one if method != "parameters"]
    assert len(routes) > 15
    for path, method in routes:
        operation = document["paths"][path][method]
        is_open = path in ("/v2/health/live", "/v2/health/ready")
        answer = http.get(path) if method == "get" else http.post(path)
        assert (answer.status == 401) is not is_open
        assert ("401" in operation["responses"]) is not is_open
        assert operation.get("security", []) == ([] if is_open else [{scheme: []}])
        assert ({"403", "415"} <= set(operation["responses"])) is (method == "post")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer(KEY), 200),
        (bearer(OTHER), 200),
        (bearer(CHIEF), 200),
        ({"Authorization".lower(): f"bearer  {KEY} "}, 200),
        ({"x-api-key": KEY}, 200),
        ({"x-api-key": KEY, "authorization": "Basic eDp5"}, 200),
        ({"x-api-key": KEY, **bearer(WRONG)}, 401),
        (bearer(WRONG), 401),
        (bearer(KEY[:-1]), 401),
        (bearer(KEY + "0"), 401),
        (bearer(""), 401),
        (bearer("a" * 20_000), 401),
        ({"authorization": KEY}, 401),
        (bearer("admin " + CHIEF), 401),
    ],
)
def test_a_request_needs_one_of_the_keys(http: InProcess, full: Any, headers: Any, status: int) -> None:
    assert http.post("/rank", full.golden[0].request, **headers).status == status


@pytest.mark.parametrize("path", ["/items", "/reload", "/items/", "/other"])
def test_what_changes_the_server_needs_an_admin_key(http: InProcess, path: str) -> None:
    answer = http.post(path, {"items": []}, **bearer(KEY))
    assert answer.status == 403
    assert read_error(answer)["expected"] == "an admin key"
    assert http.post(path, {"items": []}, **bearer(WRONG)).status == 401
    assert http.post(path, {"items": []}, **bearer(CHIEF)).status not in (401, 403)


def test_keys_change_with_a_reload(http: InProcess, key_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key_file.write_text(f"{WRONG}\nadmin {CHIEF}")
    assert http.get("/health", **bearer(KEY)).status == 200
    assert http.post("/reload", **bearer(CHIEF)).status == 200
    assert http.get("/health", **bearer(KEY)).status == 401
    assert http.get("/health", **bearer(WRONG)).status == 200
    assert "1 ordinary, 1 admin" in caplog.text
    key_file.write_text("")  # refused, so that the server is not open
    answer = http.post("/reload", **bearer(CHIEF))
    assert answer.status == 422
    assert "no key" in read_error(answer)["found"]
    assert http.get("/health").status == 401
    assert http.get("/health", **bearer(WRONG)).status == 200


def test_keys_change_even_if_the_bundle_cannot_be_replaced(
    http: InProcess, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[int]()
    monkeypatch.setattr("longrec.serve.app.os.kill", lambda process, number: sent.append(process))
    monkeypatch.setattr(http.app, "_supervisor", 77)
    monkeypatch.setattr(http.app.current, "_waiting", MAX_RELOADS)
    key_file.write_text(f"{WRONG}\nadmin {CHIEF}")
    assert http.post("/reload", **bearer(CHIEF)).status == 409
    assert sent == [77]
    assert http.get("/health", **bearer(WRONG)).status == 200


def test_keys_are_never_shown(
    http: InProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("an error of the server itself, which is logged with its traceback")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(http.app.service, "health", fail)
    answers = [
        http.post("/rank", {}, **bearer(WRONG)),
        http.post("/items", {}, **bearer(KEY)),
        http.post("/rank", b"{", **{"content-type": "text/plain"}, **bearer(KEY)),
        http.get("/health", **bearer(KEY)),
        http.post("/reload", **bearer(CHIEF)),
        http.get("/metrics", **bearer(CHIEF)),
    ]
    assert [one.status for one in answers] == [401, 403, 415, 500, 200, 200]
    assert 'status="401"} 1' in answers[-1].content.decode()
    assert "Traceback" in caplog.text
    shown = [caplog.text, str(http.app.access.__dict__), *map(str, answers)]
    assert not [key for key in (KEY, OTHER, CHIEF, WRONG) if any(key in text for text in shown)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no key"),
        ("# nothing\n\n", "no key"),
        (f"{KEY}\nshort-secret", "line 2: 12 characters"),
        ("x" * 300, "line 1: 300 characters"),
        (f"{KEY}\n# a\n{KEY}", "line 3: the key of line 1 again"),
        (f"{KEY},admin {KEY}", "line 1: the key of line 1 again"),
        (f"shop:{KEY}", "line 1: characters"),
        (f"{KEY}é", "line 1: characters"),
        (f"chief {KEY}", "line 1: several words"),
        (f"admin admin {KEY}", "line 1: several words"),
        ("admin", "line 1: 5 characters"),
        ("\n".join(f"{KEY}{number}" for number in range(MOST + 1)), f"{MOST + 1} keys"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_showing_them(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        parse_keys(text, "keys")
    assert not [one for one in (KEY, "short-secret", "x" * 20) if one in str(caught.value)]


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    assert read_keys(None) is None
    monkeypatch.setenv(API_KEYS, f"{KEY}, admin {CHIEF}")
    keys = read_keys(None)
    assert keys is not None
    assert [keys.find_kind(key.encode()) for key in (KEY, CHIEF, OTHER)] == [ORDINARY, ADMIN, None]
    with pytest.raises(ConfigError, match="one of the two"):
        read_keys(str(key_file))
    monkeypatch.setenv(API_KEYS, "")  # a secret that was not filled in must not open the server
    with pytest.raises(ConfigError, match="no key"):
        read_keys(None)


def test_a_key_instead_of_its_file_is_not_shown(tmp_path: Path) -> None:
    for path in (KEY, str(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            read_keys(path)
        assert path not in str(caught.value)
    (tmp_path / "keys").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_keys(str(tmp_path / "keys"))


def test_the_command_serves_with_keys(steps: Any, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.chmod(0o644)
    assert is_open_to_others(str(key_file))
    command = [sys.executable, "-m", "longrec", "serve", str(steps.bundle), "--port", "0", "--workers", "2"]
    command += ["--api-keys", key_file.name, "--allowed-hosts", "shop.example"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=key_file.parent, **pipes) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split("ready at ")[1].split()[0]
            with (
                client(url) as shop,
                pytest.raises(RequestError, match=r"no API key.*\n.*api_key=.*, or set") as caught,
            ):
                shop.health()
            assert caught.value.status == 401
            with client(url, api_key=KEY) as shop:
                assert shop.rank(**steps.golden[0].request)
            monkeypatch.setenv(API_KEY, OTHER)
            with client(url) as shop:
                assert shop.health()["model"] == "shop:PlainRanker"
            assert send_status(url, "Shop.Example") == 200
            assert send_status(url, "evil.example") == 421
        finally:
            process.terminate()
            _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "other users may read or change" in err
    assert len(err.splitlines()) == 1


def send_status(url: str, host: str) -> int:
    import http.client

    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=20)
    connection.request("GET", "/health", headers={"host": host, "x-api-key": KEY})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("key", [f"{KEY}\r\nhost: x", "short", f"{KEY} ", "ключ-0123456789abcdef"])
def test_a_client_refuses_what_is_no_key_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="cannot be a key") as caught:
        client("http://127.0.0.1:9", api_key=key)
    assert key not in str(caught.value)
    monkeypatch.setenv(API_KEY, key)
    with pytest.raises(RequestError, match="cannot be a key"):
        client("http://127.0.0.1:9")


def test_a_bundle_has_no_key() -> None:
    with pytest.raises(RequestError, match="api_key of a bundle"):
        client("shop.bundle", api_key=KEY)
