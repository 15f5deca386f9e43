"""Start of the command line. It handles Ctrl-C from the first import on, and where a library swallows or renames it.

The command line (``cli.py``) is imported here, so that an interrupt during imports ends as any other one does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
_AGAIN = 0.05
"""Seconds after which an interrupt that Python has ignored is sent again."""

_PATIENCE = 2.0
"""Seconds that the main thread has to handle an interrupt before another thread ends the process."""


class _Interrupt:
    """Handler of SIGINT.

    While the command line is imported it ends the process: nothing was written yet. Later it raises KeyboardInterrupt,
    after which a command removes its temporary files. The second Ctrl-C ends the process.

    Attributes:
        importing: True until the command line is imported.
        received: True after the first Ctrl-C.
    """

    def __init__(self) -> None:
        self.importing = True
        self.received = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.importing or self.received:
            end_interrupted()
        self.received = True
        raise KeyboardInterrupt

    def handle_ignored(self, ignored: sys.UnraisableHookArgs) -> None:
        """Send an interrupt again that was raised where Python can only ignore it, such as in a destructor."""
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(ignored)
            return
        self.received = False
        timer = threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()

    def watch(self) -> None:
        """Start the thread that ends the process where the main thread cannot.

        Python calls the handler in the main thread only. That may be inside C code of a library, which waits for its
        own threads: DuckDB may do so after an interrupt too, when it closes a connection. Then the second Ctrl-C ends
        the process. Code that has a handler of its own, such as a training, is left alone.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._wait_for_signals, args=(reader,), daemon=True).start()

    def _wait_for_signals(self, reader: int) -> None:
        signals = 0
        while number := os.read(reader, 1):
            if number[0] != signal.SIGINT:
                continue
            signals += 1
            time.sleep(_PATIENCE)
            if (not self.received or signals > 1) and signal.getsignal(signal.SIGINT) == self.handle:
                end_interrupted()


def end_interrupted() -> None:
    """End the process as after Ctrl-C."""
    sys.stderr.write("longrec: interrupted\n")
    end_process(INTERRUPTED)


def end_process(code: int) -> None:
    """End the process with an exit code, without the interpreter's own end.

    That would take the handlers of imported libraries a while, and after an interrupt inside ``eval`` it would replace
    the exit code by the signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Run the command line, and return its exit code."""
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt.handle)
    sys.unraisablehook = interrupt.handle_ignored
    interrupt.watch()
    from longrec.cli import main as run

    interrupt.importing = False
    code = run(is_interrupted=lambda: interrupt.received)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the handlers of the interpreter's end would print a trace
    if code == INTERRUPTED:
        atexit._run_exitfuncs()
        end_process(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
