"""API keys of a server: their file, and the check of a key in constant time."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from hmac import compare_digest

from longrec.errors import ConfigError

API_KEYS = "LONGREC_API_KEYS"
"""Environment variable with the keys of a server, on lines of their own or separated by commas."""
OPTION = "--api-keys"
ORDINARY, ADMIN = "ordinary", "admin"
"""Kinds of keys. An admin key may also change something for all clients, and read the events of a user."""
SHORTEST, LONGEST, MOST = 16, 256, 64
"""Lengths of a key in characters, and the largest number of keys."""
_LETTERS = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""What a bearer token may consist of (RFC 6750)."""


def is_key(text: str) -> bool:
    """Return True if a text can be an API key."""
    return SHORTEST <= len(text) <= LONGEST and _LETTERS.fullmatch(text) is not None


class ApiKeys:
    """Keys of a server, of which only the digests are stored.

    Args:
        keys: kind by key.
    """

    def __init__(self, keys: dict[str, str]) -> None:
        self._digests = [(_digest(key.encode()), kind) for key, kind in keys.items()]

    def __repr__(self) -> str:
        """Return the numbers of keys."""
        kinds = [kind for _, kind in self._digests]
        return f"{kinds.count(ORDINARY)} {ORDINARY}, {kinds.count(ADMIN)} {ADMIN}"

    def find_kind(self, key: bytes) -> str | None:
        """Return the kind of a key, None if it is not one of these. The time does not depend on the answer."""
        digest, kind = _digest(key[: LONGEST + 1]), None
        for own, its_kind in self._digests:
            if compare_digest(own, digest):
                kind = its_kind
        return kind


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: str | None) -> ApiKeys | None:
    """Read the keys of a server from a file, or from the environment variable. None if neither is set.

    A line is ``KEY`` or ``admin KEY``. Empty lines and lines that begin with ``#`` are ignored.

    Raises:
        ConfigError: if the file cannot be read, a key cannot be used, there is none, or both sources are set. The
            message has the numbers of lines, and neither the keys nor the path, which may be a key by mistake.
    """
    text, source = os.environ.get(API_KEYS), API_KEYS
    if path is not None:
        if text is not None:
            raise ConfigError(OPTION, [f"{API_KEYS} is set too; expected one of the two"])
        text, source = _read_file(path), OPTION
    return None if text is None else ApiKeys(parse_keys(text, source))


def _read_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except UnicodeDecodeError:
        fault = "the file is not UTF-8 text"
    except OSError as error:
        fault = f"the file cannot be read ({error.strerror})"
    raise ConfigError(OPTION, [f"{fault}; expected a file with one key per line (a key itself does not belong here)"])


def parse_keys(text: str, source: str) -> dict[str, str]:
    """Return the kinds of the keys in a text, by key.

    Raises:
        ConfigError: with all faults of the text.
    """
    keys, lines, faults = dict[str, str](), dict[str, int](), list[str]()
    for number, line in _list_entries(text):
        *mark, key = line.split()
        if mark not in ([], [ADMIN]):
            faults.append(f"line {number}: several words; expected KEY or admin KEY")
        elif not _LETTERS.fullmatch(key):
            faults.append(f"line {number}: characters that a key cannot have; expected letters, digits and -._~+/=")
        elif not is_key(key):
            faults.append(f"line {number}: {len(key)} characters; expected {SHORTEST} to {LONGEST}")
        elif key in lines:
            faults.append(f"line {number}: the key of line {lines[key]} again")
        else:
            keys[key], lines[key] = ADMIN if mark else ORDINARY, number
    if not keys and not faults:
        faults.append("no key; expected at least one, such as the output of: openssl rand -hex 32")
    if len(keys) > MOST:
        faults.append(f"{len(keys)} keys; expected at most {MOST}")
    if faults:
        raise ConfigError(source, faults)
    return keys


def _list_entries(text: str) -> Iterator[tuple[int, str]]:
    """Yield the entries of a text with the numbers of their lines, without comments."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield from ((number, entry) for entry in line.split(",") if entry.strip())


def is_open_to_others(path: str) -> bool:
    """Return True if other users of this machine may read or change a file."""
    return bool(os.stat(path).st_mode & (stat.S_IROTH | stat.S_IWOTH))
