"""Writers for tests that kill them. One process that has imported everything forks a writer per input line.

On standard input ``SEED``; on standard output ``PID``, and ``dead`` when that writer has ended. A writer appends,
compacts and changes attributes at random, and writes the number of every append that has returned into ``acks``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from longrec.store.lsm_store import LsmStore

TYPES = {"name": np.dtype(np.int64), "number": np.dtype(np.int32), "vector": np.dtype((np.float16, (16,)))}
TOGETHER = 50
"""Events of one append."""


def batch(number: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the events of one append, of many keys, some of them late."""
    random = np.random.default_rng(number)
    names = number * TOGETHER + np.arange(TOGETHER)
    vectors = np.full((TOGETHER, 16), number % 1_000, np.float16)
    times = number - random.integers(0, 20, TOGETHER)
    return random.integers(-20, 20, TOGETHER), times, {
        "name": names,
        "number": np.full(TOGETHER, number),
        "vector": vectors,
    }  # fmt: skip


def write(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    acks = os.open(folder.parent / "acks", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = LsmStore.open(folder, writable=True, sync=bool(seed % 2))
    number = len(store) // TOGETHER
    if number:
        store.append(*batch(number - 1))  # retry: the last append may have been acknowledged or not
    while True:
        store.append(*batch(number))
        os.write(acks, number.to_bytes(8, "little"))
        number += 1
        if random.random() < 0.1:
            store.compact()
        if random.random() < 0.05:
            store.set_attributes({"number": number})


def main() -> None:
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                write(folder, int(line))
            finally:
                os._exit(1)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
