"""Worker process of a server: its application, from the environment that the supervisor sets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from starlette.applications import Starlette

from longrec.errors import LongRecError
from longrec.serve.access import Access, AccessOptions
from longrec.serve.app import App
from longrec.serve.limits import Limits, fit_to_open_files
from longrec.serve.service import Service
from longrec.serve.settings import Settings

BUNDLE, SETTINGS, LIMITS, COUNTS = "LONGREC_BUNDLE", "LONGREC_SETTINGS", "LONGREC_LIMITS", "LONGREC_COUNTS"
"""Environment variables of a worker process: the bundle, its settings and limits as JSON, the folder of counters."""
ACCESS = "LONGREC_ACCESS"
"""Environment variable with the options of the access as JSON. They have the file of the keys, not the keys."""


SUPERVISOR = "LONGREC_SUPERVISOR"
"""Environment variable with the process id of the supervisor."""
WATCH_SECONDS = 1.0
"""Time between two looks at the supervisor."""


async def _end_with_supervisor() -> None:
    """End this process after its supervisor, which a ``kill -9`` keeps from ending its workers."""
    supervisor = int(os.environ[SUPERVISOR])  # which may have ended before this process began to look
    while os.getppid() == supervisor:
        await asyncio.sleep(WATCH_SECONDS)
    signal.raise_signal(signal.SIGTERM)


def create_worker_app() -> Starlette:
    """Create the application of a worker process from its environment."""
    try:
        settings = msgspec.json.decode(os.environ.get(SETTINGS, "{}"), type=Settings)
        limits = fit_to_open_files(msgspec.json.decode(os.environ.get(LIMITS, "{}"), type=Limits))
        service = Service(os.environ[BUNDLE], settings)
        service.check()
        access = Access(msgspec.json.decode(os.environ.get(ACCESS, "{}"), type=AccessOptions))
    except LongRecError as error:
        print(f"longrec: {error}", file=sys.stderr)
        sys.exit(3)  # with this status uvicorn does not start the worker again

    app = App(service, Path(os.environ[COUNTS]), limits, access)

    @contextlib.asynccontextmanager
    async def close_at_end(_: Starlette) -> AsyncIterator[None]:
        app.reload_at_signal()
        watch = asyncio.create_task(_end_with_supervisor())
        yield
        watch.cancel()
        app.close()  # writes the last rows of its log; the signal that ends a worker runs no other handler

    return app.starlette(close_at_end)
