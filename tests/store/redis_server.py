"""A real Redis or Valkey server for tests and benchmarks: the one that is installed, or Debian's package unpacked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "longrec" / "redis-server"
PACKAGES = ["redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1"]


class NoServer(Exception):
    """No Redis or Valkey server is available, for the reason in the message."""


def program() -> tuple[str, dict[str, str]]:
    """Return the path of a server program and its environment.

    Raises:
        NoServer: none is installed, and none can be fetched.
    """
    for name in ("redis-server", "valkey-server"):
        if executable := shutil.which(name):
            return executable, dict(os.environ)
    unpacked = CACHE / "usr" / "bin" / "redis-server"
    if not unpacked.exists():
        _fetch()
    libraries = ":".join(str(path) for path in sorted((CACHE / "usr" / "lib").glob("*-linux-gnu*")))
    return str(unpacked), {**os.environ, "LD_LIBRARY_PATH": libraries}


def _fetch() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise NoServer("no redis-server, no valkey-server, and no apt-get to fetch one")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as work:
        # A package of an old list may no longer be in the archive. Then the list is updated (as root only).
        steps = [["apt-get", "download", *PACKAGES], ["apt-get", "update"], ["apt-get", "download", *PACKAGES]]
        for step in steps:
            try:
                done = subprocess.run(step, cwd=work, capture_output=True, text=True, timeout=120, check=False)
            except subprocess.TimeoutExpired:
                raise NoServer(f"{' '.join(step[:2])} takes more than two minutes") from None
            if len(list(Path(work).glob("*.deb"))) == len(PACKAGES):
                break
        else:
            raise NoServer(f"apt-get gives no redis-server: {done.stderr.strip()[-200:]}")
        built = Path(work) / "built"
        for package in Path(work).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, built], check=True, timeout=60)
        shutil.rmtree(CACHE, ignore_errors=True)
        built.rename(CACHE)


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run a new server on a free port inside the block and yield ``redis://host:port/0``.

    Raises:
        NoServer: there is no program, or it does not start.
    """
    command, environment = program()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", "--daemonize", "no"]
        with (Path(folder) / "said").open("w+") as output:
            server = subprocess.Popen([command, *where, *options], env=environment, stdout=output, stderr=output)
            try:
                _wait(server, port, output.name)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, output: str) -> None:
    client = redis.Redis(port=port)
    try:
        for _ in range(200):
            try:
                client.ping()
            except redis.ConnectionError:
                if server.poll() is not None:
                    raise NoServer(f"redis-server ends at once: {Path(output).read_text()[-200:]}") from None
                time.sleep(0.05)
            else:
                return
    finally:
        client.close()
    raise NoServer("redis-server does not answer within ten seconds")
