"""Start of the command line. It handles Ctrl-C from the first import on, and where a library swallows or renames it.

The command line (``cli.py``) is imported here, so that an interrupt during imports ends as any other one does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
_AGAIN = 0.05
"""Seconds after which an interrupt that Python has ignored is sent again."""


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
            sys.stderr.write("longrec: interrupted\n")
            end_process(INTERRUPTED)
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
