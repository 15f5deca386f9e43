"""Supervisor of the worker processes of a server, which it starts, replaces when they die, and ends.

Workers are forks of one process that has imported what a worker needs and has no thread yet. Imports take more than a
second, so a worker that replaces a dead one is there much sooner. It shares the memory of the modules as well. Other
systems than Linux start every worker anew, because some of their libraries do not survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from socket import socket
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from longrec.serve.worker import DIGESTS

_IMPORTED = ["longrec.serve.worker", "uvicorn.lifespan.on", "uvloop", "numpy.random", "pandas"]
"""What a worker imports, without onnxruntime, which starts threads. pyarrow imports pandas where it is installed."""
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_HELD = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
RETRY_SECONDS = 5.0
"""Time between two starts of a worker that replaces another one and fails."""
END_SECONDS = 5.0
"""Time for a worker to end after its last request."""
_log = logging.getLogger(__name__)


def _run(environment: Mapping[str, str], config: uvicorn.Config, target: Callable[..., None], sock: socket) -> None:
    """Run a worker in its process."""
    os.environ.update(environment)  # the process that it is forked from has none of them
    # It never receives SIGINT, and SIGHUP only when it can reload: without a handler it would end.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    config.configure_logging()
    gc.freeze()  # a collection would write to the pages of the modules, and so copy them
    target(sockets=[sock])


class Worker(Process):
    """Worker process.

    Args:
        environment: variables that it sets.

    Attributes:
        has_served: True if it has accepted connections.
    """

    def __init__(self, config: uvicorn.Config, sock: socket, environment: Mapping[str, str]) -> None:
        super().__init__(config, [sock])
        self.process = _CONTEXT.Process(target=_run, args=(environment, config, self.target, sock))
        self.has_served, self._waits, self._responded = False, False, time.monotonic()

    def start(self) -> None:
        """Start the process, which may end before its supervisor does."""
        with _hold_signals():
            super().start()

    def responds(self, seconds: float) -> bool:
        """Return True if the process has responded within the last seconds. Nothing waits for it.

        One that hangs delays neither a signal to the supervisor nor the replacement of another worker.
        """
        if not self.process.is_alive():
            return False
        try:
            if self.parent_conn.poll():
                self.has_served = self.parent_conn.recv() or self.has_served
                self._waits, self._responded = False, time.monotonic()
            if not self._waits:
                self.parent_conn.send(b"ping")
                self._waits = True
        except (OSError, EOFError):
            return False
        return time.monotonic() - self._responded < seconds

    def terminate(self) -> None:
        """Ask the process to end, if it has not yet."""
        self.process.terminate()  # which a process that ends at this moment does not disturb
        self.parent_conn.close()
        self.child_conn.close()

    def reload(self) -> None:
        """Have the process open its bundle again."""
        if self.process.is_alive() and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGHUP)


class Supervisor(Multiprocess):
    """Supervisor of worker processes that leaves SIGINT to this process, which ends them.

    A terminal sends it to every process. A worker that starts then would print a trace and hang.

    Args:
        environment: variables that tell a worker what to serve.
        held: private copies that its workers begin with. They are released at the first reload.

    Attributes:
        interrupted: True after SIGINT.
    """

    processes: list[Worker]  # type: ignore[assignment]
    interrupted = False

    def __init__(
        self, config: uvicorn.Config, sock: socket, environment: Mapping[str, str], held: contextlib.ExitStack
    ) -> None:
        super().__init__(config, sockets=[sock])
        self._environment, self._held = dict(environment), held
        self._has_served, self._retry_at = False, 0.0
        if sys.platform == "linux":
            _CONTEXT.set_forkserver_preload(_IMPORTED)

    def _start_worker(self) -> Worker:
        # At the start each worker opens what is there. One that starts later has to serve what the others do.
        own = {name: value for name, value in self._environment.items() if name != DIGESTS or self._has_served}
        worker = Worker(self.config, self.sockets[0], own)
        worker.start()
        return worker

    def init_processes(self) -> None:
        """Start the workers."""
        self.processes = [self._start_worker() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died or hang.

        A worker that cannot start ends the server only if none has served and all have failed. Otherwise the others
        continue with what they have opened, although it may be no longer there.
        """
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker.responds(self.config.timeout_worker_healthcheck):
                self._has_served = self._has_served or worker.has_served
                continue
            failed = worker.exitcode == STARTUP_FAILURE
            if failed and not self._has_served:
                if not any(other.process.is_alive() for other in self.processes):
                    _log.error("no worker can start, and the server ends")
                    self.should_exit.set()
                    return
                continue  # the others are still starting, and nothing is said about them
            if failed and time.monotonic() < self._retry_at:
                continue
            worker.kill()  # one that hangs
            worker.join()
            _log.warning("a worker ended with status %s and is replaced", worker.exitcode)
            self.processes[index] = self._start_worker()
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def join_all(self) -> None:
        """Wait until the workers have ended, and kill those that hang."""
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or 0) + END_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.kill()
            worker.join()

    def handle_hup(self) -> None:
        """Have every worker open its bundle again."""
        self._held.close()
        self._environment.pop(DIGESTS, None)  # a worker that starts from now on reads what is there
        self._retry_at = 0.0
        for worker in self.processes:
            worker.reload()

    def handle_ttin(self) -> None:
        """Start one more worker."""
        self.processes_num += 1
        self.processes.append(self._start_worker())

    def handle_int(self) -> None:
        """End the workers."""
        self.interrupted = True
        super().handle_int()


@contextlib.contextmanager
def _hold_signals() -> Iterator[None]:
    """Deliver signals at the end of the block. Processes that are started inside do not receive them."""
    resource_tracker.ensure_running()  # started with the first process, it would allow the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
