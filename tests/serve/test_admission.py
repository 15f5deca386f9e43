"""Tests of the queue before the model: order, bounds, deadlines, clients who leave, and slices of long work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from longrec.serve.admission import DEADLINE, GONE, QUEUE, SLICE_SECONDS, Admission, Shed


class Counts:
    """Counters of a queue."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.longest = 0

    def count_wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def set_queue(self, length: int) -> None:
        self.longest = max(self.longest, length)


def stay() -> bool:
    return False


def leave() -> bool:
    return True


LATER = float("inf")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def once(done: list[Any], value: Any) -> Iterator[Any]:
    done.append(value)
    yield value


def test_requests_of_one_iteration_wait_in_their_order_and_the_last_are_refused() -> None:
    async def check() -> None:
        counts, done = Counts(), list[Any]()
        queue = Admission(3, counts)
        tasks = [queue.compute(once(done, number), stay, LATER) for number in range(6)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:4] == done == [0, 1, 2, 3]  # one had the turn, three waited
        assert [type(one) for one in results[4:]] == [Shed, Shed]
        assert results[4].status == 503
        assert results[4].reason == QUEUE
        assert len(counts.waits) == counts.longest == 3
        assert await queue.compute(once(done, 9), stay, LATER) == 9  # the queue is empty again
        assert not queue.is_full

    run(check())


def test_the_loop_runs_other_work_between_two_computations() -> None:
    async def check() -> None:
        order = list[Any]()

        async def other() -> None:
            while len(order) < 6:
                order.append("other")
                await asyncio.sleep(0)

        queue = Admission(3, Counts())
        await asyncio.gather(*(queue.compute(once(order, number), stay, LATER) for number in range(3)), other())
        computed = [order.index(number) for number in range(3)]
        assert all("other" in order[first:second] for first, second in zip(computed, computed[1:]))

    run(check())


@pytest.mark.parametrize(("is_gone", "until", "reason"), [(leave, LATER, GONE), (stay, 0.0, DEADLINE)])
def test_who_has_left_or_is_late_is_not_computed(is_gone: Callable[[], bool], until: float, reason: str) -> None:
    async def check() -> None:
        done = list[Any]()
        queue = Admission(3, Counts())
        first, second, third = await asyncio.gather(
            queue.compute(once(done, 1), stay, LATER),
            queue.compute(once(done, 2), is_gone, until),
            queue.compute(once(done, 3), stay, LATER),
            return_exceptions=True,
        )
        assert (first, third, done) == (1, 3, [1, 3])
        assert isinstance(second, Shed)
        assert second.reason == reason

    run(check())


def test_a_failure_passes_on_the_turn() -> None:
    def fail() -> Iterator[int]:
        raise ValueError("no")
        yield 0

    async def check() -> None:
        queue = Admission(3, Counts())
        results = await asyncio.gather(
            queue.compute(fail(), stay, LATER), queue.compute(once([], 2), stay, LATER), return_exceptions=True
        )
        assert isinstance(results[0], ValueError)
        assert results[1] == 2

    run(check())


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def check() -> None:
        done = list[Any]()
        queue = Admission(3, Counts())
        tasks = [asyncio.create_task(queue.compute(once(done, number), stay, LATER)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == 0
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[2] == 2
        assert done == [0, 2]

    run(check())


def test_long_work_lets_others_through_and_is_finished() -> None:
    def work(log: list[str], slices: int) -> Iterator[str | None]:
        for _ in range(slices):
            time.sleep(1.5 * SLICE_SECONDS)
            log.append("slice")
            yield None
        yield "result"

    async def check() -> None:
        log = list[str]()
        queue = Admission(3, Counts())
        long = asyncio.create_task(queue.compute(work(log, 6), stay, LATER))
        for _ in range(3):
            await asyncio.sleep(0)
            await queue.compute(once(log, "short"), stay, LATER)
        assert await long == "result"
        assert log.count("slice") == 6
        assert all(log.index("short") < at for at, one in enumerate(log) if at > 4 and one == "slice")
        assert "slice" in log[log.index("short") :]

    run(check())


def test_long_work_of_a_client_who_leaves_ends() -> None:
    async def check() -> None:
        steps = list[int]()

        def work() -> Iterator[str | None]:
            for number in range(100):
                steps.append(number)
                time.sleep(1.1 * SLICE_SECONDS)
                yield None
            yield "result"

        queue = Admission(3, Counts())
        with pytest.raises(Shed, match="the client has left"):
            await queue.compute(work(), lambda: len(steps) >= 2, LATER)
        assert len(steps) == 2
        assert await queue.compute(once([], 1), stay, LATER) == 1

    run(check())
