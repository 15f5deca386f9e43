"""The command line as a module: ``python -m longrec``."""

from __future__ import annotations

import sys

from longrec.entry import main

if __name__ == "__main__":
    sys.exit(main())
