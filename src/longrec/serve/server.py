"""HTTP server: uvicorn on uvloop and httptools, by default on loopback."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import orjson
import uvicorn

from longrec.errors import LongRecError
from longrec.serve.access import Access, AccessOptions
from longrec.serve.api_keys import is_open_to_others, read_keys
from longrec.serve.app import App
from longrec.serve.limits import Limits, fit_to_open_files
from longrec.serve.pipelines import RANK
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.serve.supervisor import Supervisor
from longrec.serve.worker import ACCESS, BUNDLE, COUNTS, DIGESTS, LIMITS, SETTINGS

HOST, PORT = "127.0.0.1", 8000
_READY = "ready at "
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""One thread per process, which does not spin while it waits."""
_OPTIONS: dict[str, Any] = {
    "loop": "uvloop",
    "http": "longrec.serve.connections:GuardedProtocol",
    "ws": "none",
    "proxy_headers": False,
    "lifespan": "off",
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "timeout_graceful_shutdown": 10,
    # A worker that starts on a busy machine is not dead: the default of five seconds would restart it again and again.
    "timeout_worker_healthcheck": 60,
}


def serve(
    bundle: str | Path,
    host: str = HOST,
    port: int = PORT,
    workers: int = 1,
    settings: Settings | None = None,
    limits: Limits | None = None,
    access: AccessOptions | None = None,
    private: bool = True,
) -> None:
    """Serve a bundle or a pipeline until SIGTERM. SIGINT raises KeyboardInterrupt at the end.

    Running requests are finished first.

    Args:
        bundle: folder of the bundle, or YAML file of the pipeline.
        host: address to listen on.
        port: port to listen on, 0 for a free one. The URL is printed.
        workers: number of processes that share the port, one core each.
        settings: locations of live tokens, of recorded events and of a retriever.
        limits: what each process accepts at once, and how long it waits.
        access: who may send requests.
        private: read a private copy of every bundle. False: read it in place, where nobody may change it.

    Raises:
        ConfigError: if a limit is not positive, a host is no name, or the API keys cannot be read.
        BundleError: if a bundle cannot be served on this machine.
        StoreError: if a store cannot be opened.
        ResourceError: if the disk has too little space for a copy.
        LongRecError: if the address cannot be bound, or several processes would write to one folder.
    """
    for name, value in _THREADS.items():
        os.environ.setdefault(name, value)
    settings = msgspec.structs.replace(settings or Settings(), private=private)
    limits, access = limits or Limits(), access or AccessOptions()
    limits.check()
    has_keys = _check_access(access)
    options = {**_OPTIONS, "timeout_keep_alive": limits.idle}
    with contextlib.ExitStack() as closing:
        service = Service(bundle, settings)
        closing.callback(service.close)
        service.check()
        if workers > 1 and service.exclusive_folders:
            raise LongRecError(
                "--events",
                f"{workers} workers, and {service.exclusive_folders[0]} is a folder that only one process may write to",
                "one worker, or stores on a server",
                "give --workers 1, or redis:// addresses for --tokens and --state",
            )
        format_announcement = _build_announcement(service)
        if workers == 1:
            with _open_socket(host, port, has_keys) as (sock, url), _absorb_signals():
                checks = Access(access.resolve(host, _is_loopback(sock)))
                app = App(service, limits=fit_to_open_files(limits), access=checks)
                closing.pop_all()
                closing.callback(app.close)  # of the service that is current then
                server = _Server(uvicorn.Config(app.starlette(), **options), app, format_announcement(url))
                # The collector does not scan long-lived objects again, which shortens its pauses.
                gc.collect()
                gc.freeze()
                server.run(sockets=[sock])
            return
        digests = service.list_digests()
        held = _hold_copies(service)  # until the workers, which have services of their own, use them
    del service
    with (
        held,
        _open_socket(host, port, has_keys) as (sock, url),
        tempfile.TemporaryDirectory(prefix="longrec-") as counts,
    ):
        environment = {
            BUNDLE: os.path.abspath(bundle),
            COUNTS: counts,
            DIGESTS: msgspec.json.encode(digests).decode(),
            LIMITS: msgspec.json.encode(limits).decode(),
            SETTINGS: msgspec.json.encode(settings).decode(),
            ACCESS: msgspec.json.encode(access.resolve(host, _is_loopback(sock))).decode(),
        }
        with _absorb_signals():
            config = uvicorn.Config(
                "longrec.serve.worker:create_worker_app", factory=True, workers=workers, **{**options, "lifespan": "on"}
            )
            print(format_announcement(url), flush=True)
            supervisor = Supervisor(config, sock, environment, held)
            supervisor.run()
    if supervisor.interrupted:
        raise KeyboardInterrupt


def _check_access(access: AccessOptions) -> bool:
    """Check the options of the access, and return whether requests need a key."""
    access.check()
    has_keys = read_keys(access.api_keys) is not None
    if access.api_keys is not None and is_open_to_others(access.api_keys):
        print("longrec: other users may read or change the file of --api-keys; chmod 600 it", file=sys.stderr)
    return has_keys


def _hold_copies(service: Service) -> contextlib.ExitStack:
    """Use the private copies of a service until the result is closed."""
    held = contextlib.ExitStack()
    for model in service.models:
        if model.bundle.copy is not None:
            held.callback(model.bundle.copy.share().close)
    return held


@contextlib.contextmanager
def _open_socket(host: str, port: int, has_keys: bool) -> Iterator[tuple[socket.socket, str]]:
    """Open a listening socket and yield it with its URL."""
    with _bind_socket(host, port) as sock:
        if not (has_keys or _is_loopback(sock)):
            print(f"longrec: {host} is open to the network, without authentication", file=sys.stderr)
        yield sock, format_url(host, sock.getsockname()[1])


def _is_loopback(sock: socket.socket) -> bool:
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def format_url(host: str, port: int) -> str:
    """Return the URL of a listening socket."""
    name = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _build_announcement(service: Service) -> Callable[[str], str]:
    """Return a function from the URL to the message that is printed when the server is ready."""
    example = service.example()
    if service.route == RANK and "candidates" in example:
        example["candidates"] = example["candidates"][:3]
    body = orjson.dumps(example).decode().replace("'", "'\\''")
    head = f"{service.model} from {service.path}: {_READY}"
    return lambda url: (
        f"{head}{url}  (console: {url}/)\ncurl -s {url}{service.route} -H 'content-type: application/json' -d '{body}'"
    )


def _bind_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except (OSError, OverflowError) as error:
        sock.close()
        raise LongRecError(
            f"{host}:{port}",
            f"the address cannot be bound ({error})",
            "a free port",
            "try port 0, which selects a free one",
        ) from None
    sock.set_inheritable(True)
    return sock


class _Server(uvicorn.Server):
    """uvicorn server that prints its URL when it listens."""

    def __init__(self, config: uvicorn.Config, app: App, announcement: str) -> None:
        super().__init__(config)
        self._app, self._announcement = app, announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start and print the URL."""
        self._app.reload_at_signal()
        await super().startup(sockets=sockets)
        if self.started:
            print(self._announcement, flush=True)


@contextlib.contextmanager
def _absorb_signals() -> Iterator[None]:
    """Note the signal that uvicorn raises again after its shutdown. SIGTERM is an ordinary end."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def run_server(
    bundle: str | Path,
    port: int = 0,
    workers: int = 1,
    seconds: float = 60.0,
    settings: Settings | None = None,
    limits: Limits | None = None,
    access: AccessOptions | None = None,
    private: bool = True,
) -> Iterator[str]:
    """Run a server in a process of its own and yield its URL. The server stops at the end of the block.

    Args:
        seconds: timeout of the start.
        settings: locations of live tokens and of recorded events.
        limits: what each process accepts at once, and how long it waits.
        access: who may send requests.
        private: read a private copy of every bundle.

    Raises:
        LongRecError: if the server did not start. The message is its output.
    """
    settings = msgspec.structs.replace(settings or Settings(), private=private)
    options = (settings, limits or Limits(), access or AccessOptions())
    encoded = [msgspec.json.encode(one).decode() for one in options]
    arguments = [sys.executable, "-m", "longrec.serve.server", str(bundle), str(port), str(workers), *encoded]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **_THREADS})
        timer = _start_kill_timer(process, seconds)
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            timer.cancel()
            if _READY not in line:
                process.wait()
                errors.seek(0)
                output = errors.read().decode(errors="replace").strip()
                raise LongRecError("server", " ".join(output.split())[-600:] or f"silent for {seconds:g} s", "a start")
            yield line.split(_READY)[1].split()[0]
        finally:
            timer.cancel()
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _start_kill_timer(process: subprocess.Popen[bytes], seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


if __name__ == "__main__":
    try:
        encoded = sys.argv[4:] or ['{"private": true}']
        encoded += ["{}"] * (3 - len(encoded))
        kinds = (Settings, Limits, AccessOptions)
        settings, limits, access = (msgspec.json.decode(text, type=kind) for text, kind in zip(encoded, kinds))
        served = partial(serve, sys.argv[1], port=int(sys.argv[2]), workers=int(sys.argv[3]))
        served(settings=settings, limits=limits, access=access, private=settings.private)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except LongRecError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
