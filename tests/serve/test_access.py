"""Tests of the names of a server, of requests of other pages, and of types of bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from in_process import InProcess, read_error

from longrec.errors import ConfigError
from longrec.serve.access import Access, AccessOptions
from longrec.serve.app import App
from longrec.serve.service import Service

JSON = "application/json"
LOCAL = AccessOptions().resolve("127.0.0.1", True)


@pytest.fixture
def local(service: Service) -> Iterator[InProcess]:
    """An application on a loopback address, without keys."""
    with InProcess(App(service, access=Access(LOCAL))) as http:
        yield http


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.0.0.1", 200),
        ("LocalHost:9", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1:8000.evil.example", 421),
        ("localhost:80:80", 421),
        ("", 421),
    ],
)
def test_a_loopback_server_answers_under_its_own_names(local: InProcess, host: str, status: int) -> None:
    answer = local.get("/health", host=host)
    assert answer.status == status
    if status == 421:
        assert "--allowed-hosts" in read_error(answer)["do"]
        assert local.get("/v2/health/ready", host=host).status == 200  # probes send the address of a container
        assert read_error(local.get("/v2", host=host))["where"] == "host"


@pytest.mark.parametrize("path", ["/metrics\n", "/health\n", "/v2\n", "/v2/health/live\n"])
def test_a_path_with_a_line_break_is_none_of_the_routes(local: InProcess, path: str) -> None:
    assert local.get(path.strip()).status == 200
    assert local.get(path).status == 404


def test_a_request_without_a_host_is_answered(local: InProcess) -> None:
    assert local.get("/health").status == 200  # HTTP/1.0


@pytest.mark.parametrize(
    ("options", "bound", "allowed"),
    [
        (AccessOptions(), "127.0.0.2", ["127.0.0.2:1", "localhost"]),
        (AccessOptions(), "::1", ["[::1]:1", "127.0.0.1"]),
        (AccessOptions(allowed_hosts=("Shop.example", "fd00::1")), "10.0.0.1", ["shop.example", "[fd00::1]:80"]),
        (AccessOptions(allowed_hosts=("Shop.example",)), "10.0.0.1", ["10.0.0.1:8000", "127.0.0.1"]),
    ],
)
def test_allowed_hosts(options: AccessOptions, bound: str, allowed: list[str]) -> None:
    access = Access(options.resolve(bound, bound.startswith(("127", "::"))))
    for host in allowed:
        assert access.refuse(build_scope("GET", host=host)) is None
    refusal = access.refuse(build_scope("GET", host="evil.example"))
    assert refusal is not None
    assert refusal.status_code == 421


@pytest.mark.parametrize(("names", "bound"), [((), "10.0.0.1"), (("*",), "127.0.0.1"), (("a", "*"), "10.0.0.1")])
def test_all_hosts(names: tuple[str, ...], bound: str) -> None:
    access = Access(AccessOptions(allowed_hosts=names).resolve(bound, bound.startswith("127")))
    assert access.refuse(build_scope("GET", host="any.example")) is None
    assert access.refuse(build_scope("POST", host="a", origin="http://b", content_type=JSON)) is None


@pytest.mark.parametrize("name", ["http://shop", "shop:80", "", "a b", "shop/", "*.example"])
def test_a_host_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-hosts"):
        AccessOptions(allowed_hosts=(name,)).check()


def build_scope(method: str, path: str = "/rank", **headers: str) -> dict[str, Any]:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": fields}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://LOCALHOST:8000", 200),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_a_post_of_another_page_is_refused(local: InProcess, full: Any, origin: str, status: int) -> None:
    headers = {"host": "localhost:8000", "origin": origin, "content-type": JSON}
    answer = local.post("/rank", full.golden[0].request, **headers)
    assert answer.status == status
    assert status == 200 or read_error(answer)["where"] == "origin"
    assert local.get("/health", **headers).status == 200  # whose answer a browser does not show to the page


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=a"}, 415),
        ({"content-type": "text/plain;charset=UTF-8"}, 415),
        ({"content-type": "text/plain; application/json"}, 415),
        ({"content-type": "application/octet-stream"}, 415),
        ({"content-type": ""}, 415),
        ({"origin": "http://elsewhere"}, 415),  # a page posts a blob without a type
    ],
)
def test_types_of_bodies(service: Service, full: Any, headers: dict[str, str], status: int) -> None:
    with InProcess(App(service)) as http:  # whatever hosts are allowed
        answer = http.post("/rank", full.golden[0].request, **headers)
        assert answer.status == status
        assert status == 200 or "content-type: application/json" in read_error(answer)["do"]
        infers = http.post("/v2/models/x/infer", b"{}", **headers).status
        assert infers == (415 if status == 415 and "octet" not in str(headers) else 404)
