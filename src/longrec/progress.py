"""Progress line with an estimate, for work that takes over two seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

QUIET = 2.0  # seconds without output: work that ends sooner prints nothing
REDRAW = 0.1  # seconds between two states of the line on a terminal
REPEAT = 10.0  # seconds between two lines where the line cannot be redrawn (a log file, a pipe)


class Progress:
    """Progress line on standard error: share done, rate, and time left.

    On a terminal the line is redrawn. Elsewhere a line is added at most every ten seconds. Work that ends within two
    seconds prints nothing. Longer work ends with one closing line. :meth:`advance` is cheap enough to call for every
    batch: until the next line is due it adds up and reads the clock.

        with Progress(len(loader), "train din", "batches") as progress:
            for batch in loader:
                ...
                progress.advance(note=f"loss {loss:.4f}")

    Args:
        total: amount of work. None when it is unknown, which gives no estimate.
        label: name of the work.
        unit: the counted unit, in the plural.
        stream: default standard error.
        clock: increasing seconds, for tests.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._drawn = 0  # width of the current line on the terminal
        self._start = clock()
        self._due = self._start + QUIET

    def __enter__(self) -> Progress:
        self._start = self._clock()
        self._due = self._start + QUIET
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add ``count`` to the amount done. ``note`` is shown at the end of the line (a loss, a file)."""
        self.at(self.done + count, note)

    def at(self, done: int, note: str = "") -> None:
        """Set the amount done."""
        self.done = done
        if note:
            self._note = note
        now = self._clock()
        if now < self._due:
            return
        self._show(self._format_state(now - self._start))
        self._due = now + (REDRAW if self._terminal else REPEAT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = self._clock() - self._start
        if seconds < QUIET:
            return
        how = "in" if kind is None else "stopped after"
        rate = f" ({self._format_rate(seconds)})" if self.done else ""
        self._show(f"{self.label}: {self._format_amount(self.done)} {how} {duration(seconds)}{rate}", last=True)

    def _format_state(self, seconds: float) -> str:
        fields = [self.label]
        if self.total:
            share = min(self.done / self.total, 1.0)
            fields += [f"{share:4.0%}", f"{self.done:,}/{self._format_amount(self.total)}"]
        else:
            fields.append(self._format_amount(self.done))
        if self.done:
            fields.append(self._format_rate(seconds))
        if self.total and 0 < self.done < self.total:
            fields.append(f"{duration(seconds * (self.total - self.done) / self.done)} left")
        if self._note:
            fields.append(self._note)
        return "  ".join(fields)

    def _format_amount(self, count: int) -> str:
        return f"{count:,} {self.unit}".rstrip()

    def _format_rate(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"

    def _show(self, line: str, *, last: bool = False) -> None:
        if self._terminal:
            # A line as wide as the terminal would wrap, and a wrapped line cannot be redrawn.
            line = line[: shutil.get_terminal_size().columns - 1]
            blank = " " * (self._drawn - len(line))
            self._stream.write(f"\r{line}{blank}" + ("\n" if last else ""))
            self._drawn = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Format seconds for people.

    >>> duration(0.42), duration(75), duration(7384)
    ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
