"""How ``longrec compress`` writes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field as Setting

from longrec.config import Strict
from longrec.features.duration import Duration


class CompressConfig(Strict):
    """Settings of one token store.

    ``blocks`` and ``stream`` train the run's source anew, from its config: what is written of an impression comes
    from weights that have seen only what was known before its block (or its batch). ``checkpoint`` writes with the
    run's own weights, and only impressions after everything the run has seen; ``leaky_checkpoint`` writes all with
    them, which shows the label of its own training rows to whoever reads the tokens.
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
        "blocks", description="which weights write which impressions; see the guide"
    )
    every: Duration | None = Setting(None, description="span of a block; by default blocks of equal numbers of rows")
    blocks: int = Setting(10, ge=2, description="how many blocks, where every is not given")
    first_slices: int = Setting(
        8, ge=1, description="slices of the first block; the first of them trains only and gets no tokens"
    )
    train_blocks: int | None = Setting(
        None, ge=1, description="train on so many blocks, then write on without learning"
    )
    epochs: int = Setting(1, ge=1, description="passes over a block; more than one did no good where it was measured")
    standardize: bool = Setting(
        True, description="bring the vectors of each version to mean 0, deviation 1, by earlier impressions"
    )
    scale_sample: int = Setting(4_000, ge=2, description="earlier impressions that give a version's mean and deviation")
    codec: Literal["fp32", "fp16", "int8", "codes"] | None = Setting(
        None, description="how vectors are stored; fp16, or codes where the source makes codes"
    )
    filter: Literal["all", "positive"] = Setting(
        "all", description="which impressions get a token; positive: those whose label is 1 (and known)"
    )
    visibility_delay: Duration = Setting("0s", description="how long after an impression its token can be read")
    context_length: int = Setting(63, ge=0, description="stored tokens a row looks back at in mode stream, user order")
    batch_size: int = Setting(4_096, ge=1, description="impressions encoded at once")
