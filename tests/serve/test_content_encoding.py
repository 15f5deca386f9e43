from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from longrec.errors import RequestError
from longrec.serve.content_encoding import WORTHWHILE_BYTES, compress, decompress

CONTENT = b'{"user": 7}' * 50
GZIP = gzip.compress(CONTENT, mtime=0)  # the same bytes in every process, since they name a test


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", GZIP),
        ("X-GZIP", GZIP),
        (" Deflate ", zlib.compress(CONTENT)),
        ("identity", CONTENT),
        ("", CONTENT),
    ],
)
def test_bodies_are_decompressed(encoding: str, body: bytes) -> None:
    assert decompress(body, encoding, len(CONTENT)) == CONTENT


@pytest.mark.parametrize(
    ("encoding", "body", "status", "message"),
    [
        ("br", CONTENT, 415, "content-encoding: 'br'; expected gzip, deflate or identity"),
        ("gzip, gzip", CONTENT, 415, "'gzip, gzip'"),
        ("gzip", CONTENT, 400, "body: no gzip data"),
        ("gzip", b"", 400, "gzip data that ends early"),
        ("gzip", zlib.compress(CONTENT), 400, "body: no gzip data"),
        ("deflate", GZIP, 400, "body: no deflate data"),
        ("gzip", GZIP[:-1], 400, "gzip data that ends early"),
        ("gzip", GZIP + b"more", 400, "4 bytes after the gzip data"),
        ("gzip", gzip.compress(CONTENT + b" ", mtime=0), 413, "more than 550 bytes decompressed; expected at most 550"),
    ],
)
def test_damaged_and_foreign_bodies_are_refused(encoding: str, body: bytes, status: int, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decompress(body, encoding, len(CONTENT))
    assert caught.value.status == status
    assert message in str(caught.value)


def test_a_bomb_is_refused_before_it_is_in_memory() -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([*(stream.compress(bytes(2**20)) for _ in range(64)), stream.flush()])
    tracemalloc.start()
    with pytest.raises(RequestError) as caught:
        decompress(bomb, "gzip", 2**18)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 2**21  # of 64 MiB


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0, *", False),
        ("gzip; q=0.0", False),
        ("gzip;q=high", False),
        ("identity", False),
        ("br, deflate", False),
        ("", False),
        (None, False),
    ],
)
def test_responses_are_compressed_for_who_accepts_it(accept: str | None, expected: bool) -> None:
    content = b"0.5," * (WORTHWHILE_BYTES // 4)
    body, headers = compress(content, accept)
    assert (headers.get("content-encoding") == "gzip") is expected
    assert headers["vary"] == "accept-encoding"
    assert (gzip.decompress(body) if expected else body) == content
    assert compress(content[1:], accept) == (content[1:], {})
