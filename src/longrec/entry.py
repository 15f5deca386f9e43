"""Start of the command line. It handles Ctrl-C from the first import on, and in libraries that turn it into an error.

The command line (``cli.py``) is imported here, so that an interrupt during imports ends as any other one does.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
_MESSAGE = "longrec: interrupted\n"


class _Interrupt:
    """Handler of SIGINT.

    While modules are imported it ends the process: nothing was written yet, and an import that is interrupted anywhere
    may print a trace or leave a broken module. Later it raises KeyboardInterrupt, after which a command removes its
    temporary files, and the second Ctrl-C ends the process.
    """

    def __init__(self) -> None:
        self.importing = True
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.importing or self.received:
            sys.stderr.write(_MESSAGE)
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        self.received = True
        raise KeyboardInterrupt


def main() -> int:
    """Run the command line, and return its exit code."""
    interrupt = _Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    from longrec.cli import main as run

    interrupt.importing = False
    code = run(is_interrupted=lambda: interrupt.received)
    # From here on only the interpreter ends, and its handlers would print a trace.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
