"""Config of exploration: one position of a page that uncertain items fill, at random and with a budget."""

from __future__ import annotations

from pydantic import Field

from longrec.config import Strict

MOST_CANDIDATES = 256
"""Largest number of candidates that get an exploration score: one run of the program."""


class Below(Strict):
    """Items with few impressions."""

    column: str = Field(
        description="Raw column of the item table with numbers, such as impressions. A null counts as 0, and `POST "
        "/items` changes it."
    )
    count: float = Field(gt=0, allow_inf_nan=False, description="Only items whose number is below are explored.")


class ExploreConfig(Strict):
    """One position of the page that an uncertain item fills at random, after all other stages."""

    bundle: str | None = Field(
        None, description="Bundle of a ranker that was exported with an explorer. Default that of `rank`."
    )
    share: float = Field(
        0.1, ge=0, le=1, description="Probability that a page outside of the control bucket explores: the budget."
    )
    position: int = Field(gt=0, le=10_000, description="Position that exploration fills, from 1.")
    candidates: int = Field(
        50,
        gt=0,
        le=MOST_CANDIDATES,
        description="Most candidates with an exploration score, the best ranked ones of those that are allowed: the "
        "budget of computing.",
    )
    below: Below | None = Field(None, description="Explore only items with few impressions. Default all items.")
    temperature: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="Temperature of the softmax over exploration scores, standardized over the candidates, by which an "
        "item is drawn. 0 takes the highest score, so that no other item can be estimated from the log.",
    )
    control: float = Field(
        0.0, ge=0, le=1, description="Share of the users in the control bucket, whose pages never explore."
    )
    salt: str = Field("explore", description="Text that is hashed with a user's key into the bucket.")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**53 - 1,
        description="Seed from which, with user and timestamp, the seed of a request is derived. Default: every "
        "request draws its own.",
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        description="Milliseconds since the request began. If the stage has not begun by then, the page stays as it is "
        "and the answer says so.",
    )
