"""Number of inverted lists that a search reads, tuned again after many items of a bundle have changed.

Lists are tuned when a bundle is exported, on vectors of requests that the bundle keeps. Items that were added or
changed since then may lie where these lists are far from each other, so that a search has to read more of them. The
result is a file beside the changes of the catalog::

    index.json      digest of the bundle, revision of the changes, nprobe, nprobe_half and the measured recall

It is read instead of measuring again by every process that moves the items of the same revision into its lists.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from longrec.exporting.bundle import REQUESTS, Bundle
from longrec.features.entity_table import open_array
from longrec.index.build import IndexFacts, tune_again
from longrec.index.item_index import ItemIndex

NAME, FORMAT = "index.json", "longrec-catalog-index-1"


def tune_lists(index: ItemIndex, bundle: Bundle, folder: Path, revision: int) -> IndexFacts | None:
    """Let a search read as many inverted lists as the recall target of the bundle needs now, and not fewer than before.

    Args:
        index: index without a side segment outside of its lists.
        folder: folder of the changes of the catalog. The result is written there, unless it is read-only.
        revision: revision of the changes that the index has.

    Returns:
        The description of the index now. None if the bundle keeps no requests, as those of LongRec 0.9.0: then nothing
        is measured.
    """
    facts, lists = bundle.manifest.index, index.lists
    if facts is None or lists is None or REQUESTS not in bundle.manifest.files:
        return None
    tuned = _read(folder / NAME, bundle, revision, facts)
    if tuned is None:
        tuned = tune_again(index, open_array(bundle.files / REQUESTS), facts)
        if os.access(folder, os.W_OK):
            _write(folder / NAME, bundle, revision, tuned)
    lists.nprobe, lists.nprobe_half = max(lists.nprobe, tuned.nprobe), max(lists.nprobe_half, tuned.nprobe_half)
    return replace(tuned, items=len(index))


def _read(path: Path, bundle: Bundle, revision: int, facts: IndexFacts) -> IndexFacts | None:
    """Return the earlier result for a revision of the changes of a bundle. None, to measure again, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    same = {"format": FORMAT, "bundle": bundle.digest, "revision": revision}
    if not isinstance(content, dict) or any(content.get(name) != value for name, value in same.items()):
        return None
    return replace(facts, **{name: content[name] for name in ("nprobe", "nprobe_half", "recall")})


def _write(path: Path, bundle: Bundle, revision: int, facts: IndexFacts) -> None:
    content = {
        "format": FORMAT,
        "bundle": bundle.digest,
        "revision": revision,
        "nprobe": facts.nprobe,
        "nprobe_half": facts.nprobe_half,
        "recall": facts.recall,
    }
    half = path.with_name(f".{NAME}.{os.getpid()}")
    half.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(half, path)
