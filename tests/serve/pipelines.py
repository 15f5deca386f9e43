"""A pipeline over the bundles of a shop: two retrievers, a ranker, and the file that joins them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import retrievers
import shop

from longrec.config import to_yaml


@functools.cache
def bundles() -> dict[str, str]:
    """Return the bundles of the full shop by what they are for."""
    return {
        "mean": str(retrievers.vectors().bundle),
        "three": str(retrievers.vectors(3).bundle),
        "din": str(shop.full().bundle),
    }


def config(**changes: Any) -> dict[str, Any]:
    """Return a pipeline of two sources, a ranker and re-ranking."""
    paths = bundles()
    content: dict[str, Any] = {
        "name": "films",
        "recall": {"mean": {"bundle": paths["mean"], "count": 12}, "three": {"bundle": paths["three"], "count": 9}},
        "merge": {"count": 14},
        "rank": {"bundle": paths["din"], "count": 10},
        "rerank": [{"method": "mmr", "lambda": 0.5, "vectors": "mean", "count": 6}],
    }
    return {key: value for key, value in {**content, **changes}.items() if value is not None}


def write(folder: Path, **changes: Any) -> Path:
    """Write the pipeline into a folder."""
    path = folder / "films.yaml"
    path.write_text(to_yaml(config(**changes)))
    return path


def request(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a request of a user with a history."""
    golden = retrievers.vectors().golden[1].request
    context = {**shop.full().golden[0].request["context"], **golden["context"]}
    return {"user": golden["user"], "at": golden["at"], "context": context, "k": 4, **changes}
