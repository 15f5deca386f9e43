"""Settings of ``longrec compress``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration


class CompressConfig(Strict):
    """Settings of one token store.

    ``blocks`` and ``stream`` train a new source model from the run's config. Each token is computed by weights that
    were trained only on labels available before the block (or the batch) of its impression. ``checkpoint`` uses the
    weights of the run and encodes only impressions after all of the run's training data. ``leaky_checkpoint`` uses the
    same weights and encodes all impressions, which leaks the labels of the training rows to readers of the tokens.
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
        "blocks",
        description="weights that compute the tokens: blocks and stream train them on earlier blocks or batches, "
        "checkpoint uses those of the run for later impressions, leaky_checkpoint for all impressions",
    )
    every: Duration | None = Setting(None, description="span of a block; default: blocks with equal numbers of rows")
    blocks: int = Setting(10, ge=2, description="number of blocks if every is not set")
    first_slices: int = Setting(
        8,
        ge=1,
        description="number of smaller blocks in the first block; the first is for training only, without tokens",
    )
    train_blocks: int | None = Setting(
        None, ge=1, description="number of blocks to train on; later blocks are encoded without training"
    )
    epochs: int = Setting(
        1, ge=1, description="training epochs per block; more than one did not help in our measurements"
    )
    standardize: bool = Setting(
        True,
        description="standardize the vectors of each version with the mean and deviation of earlier impressions",
    )
    scale_sample: int = Setting(
        4_000, ge=2, description="number of earlier impressions for the mean and standard deviation of a version"
    )
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
