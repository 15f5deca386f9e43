"""Settings of ``longrec compress``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration


class CompressConfig(Strict):
    """Settings of one token store.

    ``blocks`` and ``stream`` train a new source from the run's config. The token of an impression comes from weights
    that have seen only labels available before its block (or its batch). ``checkpoint`` writes with the run's own
    weights, and only impressions after all of the run's training data. ``leaky_checkpoint`` writes all impressions with
    them, which leaks the labels of its training rows to readers of the tokens.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "regime": "mode",
        "probe": "scale_sample",
        "keep": "filter",
        "lag": "visibility_delay",
        "past": "context_length",
        "standardise": "standardize",
    }

    mode: Literal["blocks", "stream", "checkpoint", "leaky_checkpoint"] = Setting(
        "blocks", description="weights that write the tokens, and impressions they write; see the guide"
    )
    every: Duration | None = Setting(None, description="span of a block; default: blocks with equal numbers of rows")
    blocks: int = Setting(10, ge=2, description="number of blocks without every")
    first_slices: int = Setting(
        8, ge=1, description="slices of the first block; the first is for training only and has no tokens"
    )
    train_blocks: int | None = Setting(
        None, ge=1, description="train on so many blocks, then write on without learning"
    )
    epochs: int = Setting(
        1, ge=1, description="training passes per block; more than one did not help where it was measured"
    )
    standardize: bool = Setting(
        True, description="scale vectors of each version to mean 0 and deviation 1, computed on earlier impressions"
    )
    scale_sample: int = Setting(4_000, ge=2, description="earlier impressions for the mean and deviation of a version")
    codec: Literal["fp32", "fp16", "int8", "codes"] | None = Setting(
        None, description="storage format of vectors; default: codes if the source computes codes, else fp16"
    )
    filter: Literal["all", "positive"] = Setting(
        "all", description="impressions with a token; positive: those whose label is 1 and available"
    )
    visibility_delay: Duration = Setting("0s", description="time from an impression until its token can be read")
    context_length: int = Setting(
        63, ge=0, description="stored tokens in the context of a row, in mode stream and user order"
    )
    batch_size: int = Setting(4_096, ge=1, description="impressions encoded at once")
