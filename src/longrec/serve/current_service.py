"""The service that answers requests, and its replacement by one of a new bundle while requests are answered.

The new bundle is opened and its golden requests are replayed in a thread, while the old service answers. Requests that
have begun are finished by the service that began them. It is closed after the last of them.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from longrec.errors import LongRecError, RequestError
from longrec.serve.service import Service

MAX_RELOADS = 4
"""Largest number of reloads that run or wait: one runs at a time."""


def open_again(service: Service) -> Service:
    """Open the bundle or the pipeline of a service again, and check it.

    Raises:
        LongRecError: if it cannot be served.
    """
    opened = Service(service.path, service.settings)
    try:
        opened.check()
    except BaseException:
        opened.close()
        raise
    return opened


class CurrentService:
    """The current service of a process.

    Attributes:
        service: the service that answers new requests.
        reloads: number of replacements.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.reloads = service, 0
        self._uses = {service: 0}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reload")
        self._lock, self._waiting = asyncio.Lock(), 0

    def acquire(self) -> Service:
        """Return the current service, which stays open until ``release``."""
        self._uses[self.service] += 1
        return self.service

    def release(self, service: Service) -> None:
        """End one use of a service, and close it if that was the last one of a replaced service."""
        self._uses[service] -= 1
        self._close_unused(service)

    def _close_unused(self, service: Service) -> None:
        if service is not self.service and not self._uses[service]:
            del self._uses[service]
            service.close()

    async def reload(self) -> dict[str, Any]:
        """Replace the service by one of the bundle or the pipeline that is there now.

        Returns:
            The digests of the bundles before and now, and whether they differ.

        Raises:
            RequestError: 409 if it records events or several reloads wait already, 422 if the bundle cannot be served.
                Then the former service continues.
        """
        if self.service.settings.records_events:
            do = "start a server of the new bundle, whose log contains these events"
            raise RequestError("reload", "a server that records events of its bundle", "one without events", do, 409)
        if self._waiting >= MAX_RELOADS:
            raise RequestError("reload", f"{self._waiting} reloads already", "a few at once", "wait for them", 409)
        self._waiting += 1
        try:
            async with self._lock:
                return await self._replace(self.service)
        finally:
            self._waiting -= 1

    async def _replace(self, old: Service) -> dict[str, Any]:
        try:
            new = await asyncio.get_running_loop().run_in_executor(self._thread, open_again, old)
        except LongRecError as error:
            do = error.do or "the former bundle is still served"
            raise RequestError(error.where, error.found, error.expected, do, 422) from None
        before, now = old.list_digests(), new.list_digests()
        if before == now:
            new.close()
            return {"reloaded": False, "before": before, "now": now}
        if new.pipeline is not None and old.pipeline is not None:
            new.pipeline.take_over(old.pipeline)
        self.service, self._uses[new] = new, 0
        self.reloads += 1
        self._close_unused(old)
        return {"reloaded": True, "before": before, "now": now}

    def close(self) -> None:
        """Close the current service."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.service.close()
