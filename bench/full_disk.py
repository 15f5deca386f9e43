"""A server whose disk is full, and a second writer: what was acknowledged is stored, once, and the rest is refused.

    python bench/full_disk.py [--kilobytes 500] [--seconds 20]     as root: it mounts a small file system

Six clients post events until the file system is full, and go on. Rankings continue meanwhile. A second server of the
same folder has to be refused. Then the file system grows, and events are recorded again. In the end every acknowledged
event has to be in the store of tokens exactly once. The bundle is the one of the tests of events.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import killed_server
import machine
import numpy as np

from longrec.errors import LongRecError
from longrec.serve.client import client
from longrec.serve.server import run_server
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenStore


def flood(url: str, first: int, start: int, seconds: float) -> killed_server.Flood:
    """Post events from several clients for some time."""
    clients = killed_server.Flood(first, start)
    threads = [threading.Thread(target=clients.run, args=(url,)) for _ in range(killed_server.CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    clients.ends = True
    for thread in threads:
        thread.join()
    return clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kilobytes", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    import token_shop

    from longrec.serve.knowledge_features import key_number

    shop, start = token_shop.shop(), token_shop.START + 30 * token_shop.DAY
    folder = Path(tempfile.mkdtemp(prefix="full-"))
    size = f"size={arguments.kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "longrec-full", str(folder)], check=True)
    request = {"user": "u1", "candidates": [100, 101, 110], "context": killed_server.CONTEXT}
    try:
        settings = Settings(events=str(shop.source), state=str(folder / "state"))
        with run_server(shop.bundle, settings=settings) as url, client(url) as own:
            before = flood(url, 0, start, arguments.seconds)
            own.rank(**request)
            try:
                with run_server(shop.bundle, settings=settings):
                    raise SystemExit("a second writer was accepted")
            except LongRecError as error:
                second = str(error).splitlines()[0].replace(str(folder), "FOLDER")
            subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
            time.sleep(2.0)
            after = flood(url, before.sent, start, 3.0)
        acknowledged, stored = before.acknowledged + after.acknowledged, Counter[tuple[str, int]]()
        with TokenStore.open(folder / "state" / "tokens" / "tokens") as store:
            for user in killed_server.USERS:
                times = store.last(key_number(user), 2**62, 10**6).times
                stored.update((user, int(at)) for at in times.tolist() if at >= start)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    lost = [one for one in acknowledged if not stored[one]]
    doubled = [one for one, count in stored.items() if count > 1]
    seconds = np.array(before.seconds)
    text = (
        f"{killed_server.CLIENTS} clients posted events to a server whose disk of {arguments.kilobytes} kB filled up: "
        f"{len(before.acknowledged):,} acknowledged, the others {dict(before.statuses - Counter({200: 10**9}))}, p99 "
        f"{1_000 * np.percentile(seconds, 99):.0f} ms, longest {1_000 * seconds.max():.0f} ms. A ranking was answered. "
        f"A second server of the folder was refused: {second!r}. With more space {len(after.acknowledged):,} more were "
        f"acknowledged, {dict(after.statuses - Counter({200: 10**9}))} otherwise. {sum(stored.values()):,} are stored, "
        f"{len(lost)} acknowledged ones lost, {len(doubled)} doubled."
    )
    print(text)
    machine.write("full_disk", f"# A full disk, and a second writer\n\n{text}")
    if lost or doubled or not after.acknowledged:
        raise SystemExit(f"lost {lost[:3]}, doubled {doubled[:3]}")


if __name__ == "__main__":
    main()
