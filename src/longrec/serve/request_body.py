"""Body of an HTTP request, read up to the allowed size and decompressed."""

from __future__ import annotations

from starlette.requests import Request

from longrec.errors import RequestError
from longrec.serve.content_encoding import decompress
from longrec.serve.gate import Gate


async def read_body(request: Request, limit: int, gate: Gate) -> bytes:
    """Read the body of a request.

    Args:
        limit: largest size in bytes, compressed and not.
        gate: counts the bytes of all requests that are being read.

    Raises:
        RequestError: 413 if it is too large, 400 or 415 if it cannot be decompressed.
    """
    do = "split it into several requests"
    too_large = RequestError("body", f"more than {limit:,} bytes", f"at most {limit:,}", do, 413)
    headers = dict[bytes, bytes](request.scope["headers"])  # one walk over them, whatever is looked up
    if (length := headers.get(b"content-length", b"")).isdigit() and int(length) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            gate.add_body(len(chunk))
            if size > limit:
                raise too_large
            chunks.append(chunk)
    finally:
        gate.remove_body(size)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else decompress(body, encoding.decode("latin-1"), limit)
