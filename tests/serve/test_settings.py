"""Arguments of live stores and sources on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.cli import main
from longrec.errors import RequestError
from longrec.serve.client import client
from longrec.serve.settings import Settings, build_settings


def test_settings_are_text() -> None:
    assert build_settings() == Settings()
    settings = build_settings({"tokens": "redis://h/0/t"}, "source.bundle", "state")
    assert settings == Settings({"tokens": "redis://h/0/t"}, "source.bundle", "state")


def test_the_command_line_passes_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("longrec.serve.server.serve", lambda *positional, **named: seen.append((positional, named)))
    arguments = ["serve", "b", "--tokens", "a=x", "--tokens", "b=redis://h/0/t?cap=9", "--events", "s", "--state", "z"]
    assert main([*arguments, "--recall", "r"]) == 0
    assert main(["serve", "b"]) == 0
    assert [named["settings"] for _, named in seen] == [
        Settings({"a": "x", "b": "redis://h/0/t?cap=9"}, "s", "z", "r"),
        Settings(),
    ]
    assert main(["serve", "b", "--no-copy"]) == 0
    assert [named["private"] for _, named in seen] == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tokens", "place"], "--tokens: 'place' is not HISTORY=LOCATION"),
        (["--tokens", "=x"], "'=x' is not HISTORY=LOCATION"),
        (["--state", "x"], "--state: needs --events"),
    ],
)
def test_invalid_arguments_are_refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "b", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_server_has_its_own_settings() -> None:
    with pytest.raises(RequestError, match="[Pp]ass them to the server"):
        client("http://127.0.0.1:9", events="s")
