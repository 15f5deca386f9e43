"""Compressed bodies of requests and responses: ``Content-Encoding`` and ``Accept-Encoding``."""

from __future__ import annotations

import zlib

from longrec.errors import RequestError

WORTHWHILE_BYTES = 4_096
"""Smallest response that is compressed. A smaller one fits into a few packets as it is."""
_LEVEL = 1  # responses are compressed in the event loop, and higher levels make numbers hardly smaller
_GZIP, _ZLIB = zlib.MAX_WBITS | 16, zlib.MAX_WBITS
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
ENCODINGS = "gzip, deflate or identity"


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Return a decompressed body.

    Args:
        encoding: value of ``Content-Encoding``.
        limit: largest size of the result, in bytes. Not more is allocated, however large the content would be.

    Raises:
        RequestError: 415 if the encoding is not supported, 413 if the content is too large, 400 if it is damaged.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOWS:
        raise RequestError("content-encoding", repr(encoding), ENCODINGS, "send the body without it", 415)
    stream = zlib.decompressobj(_WINDOWS[name])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError("body", f"no {name} data ({error})", f"{name}, as content-encoding says") from None
    if len(content) > limit:
        do = "split it into several requests"
        raise RequestError("body", f"more than {limit:,} bytes decompressed", f"at most {limit:,}", do, 413)
    if not stream.eof:
        raise RequestError("body", f"{name} data that ends early", "all of it")
    if stream.unused_data:  # several streams in one body would decompress in quadratic time
        raise RequestError("body", f"{len(stream.unused_data):,} bytes after the {name} data", f"one {name} stream")
    return content


def compress(content: bytes, accept: str | None) -> tuple[bytes, dict[str, str]]:
    """Compress a response with gzip if the client accepts it and it is large enough.

    Args:
        accept: value of ``Accept-Encoding``.

    Returns:
        The content, and the headers that describe it.
    """
    if len(content) < WORTHWHILE_BYTES:
        return content, {}
    headers = {"vary": "accept-encoding"}  # a cache must not answer everybody alike
    if accept is None or not _accepts_gzip(accept):
        return content, headers
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return stream.compress(content) + stream.flush(), {**headers, "content-encoding": "gzip"}


def _accepts_gzip(accept: str) -> bool:
    """True if gzip is listed, or any coding is, with a weight above 0."""
    weights: dict[str, float] = {}
    for entry in accept.lower().split(","):
        name, _, parameter = entry.partition(";")
        key, _, value = parameter.strip().partition("=")
        try:
            weights[name.strip()] = float(value) if key.strip() == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    weight = next((weights[name] for name in ("gzip", "x-gzip", "*") if name in weights), 0.0)
    return weight > 0.0
