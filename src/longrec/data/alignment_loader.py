"""Batches of targets with rewards, and with pairs of items of one request of which the user preferred one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.data.preferences import Preferences
from longrec.features.batch import Batch
from longrec.features.sampling import Sampling


class AlignmentLoader(NextItemLoader):
    """Loader of targets as those of ``NextItemLoader``, followed by the less preferred items of their pairs.

    The preferred row of a pair is a target. The other item is a target of the same state, user and context, with the
    weight 0. So a log with one row per impression and task has the pairs of a task where its label is positive.

    Args:
        rows: targets, int64 rows of the log.
        preferences: of the training rows of the log.
        settings: further arguments of ``NextItemLoader``.
    """

    def __init__(
        self,
        log: Log,
        rows: NDArray[np.int64],
        batch_size: int,
        history: str,
        sampling: Sampling,
        *,
        preferences: Preferences,
        **settings: Any,
    ) -> None:
        self.preferences = preferences
        super().__init__(log, rows, batch_size, history, sampling, **settings)

    def _add_candidates(
        self,
        batch: Batch,
        rows: NDArray[np.int64],
        state: NDArray[np.int64],
        random: np.random.Generator,
        per_position: bool,
        gap: NDArray[np.int32] | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> Batch:
        winner, loser = self.preferences.draw_pairs(rows, random)
        count, every = len(rows), np.concatenate([np.arange(len(rows)), winner])
        batch = super()._add_candidates(
            batch,
            rows[every],
            state[every],
            random,
            per_position,
            None if gap is None else gap[every],
            np.concatenate([rows, loser]),
        )
        assert batch.targets is not None
        weight = np.zeros(len(every), np.float32)
        weight[:count] = 1 if self.log.sample_weight is None else self.log.sample_weight.take(rows)
        reward = None
        if self.preferences.reward is not None:
            reward = np.full(len(every), np.nan, np.float32)
            reward[:count] = self.preferences.rewards_of(rows)
        pairs = np.stack([winner, count + np.arange(len(loser))])
        return replace(
            batch,
            targets=replace(
                batch.targets,
                weight=torch.from_numpy(weight),
                reward=None if reward is None else torch.from_numpy(reward),
                pairs=torch.from_numpy(pairs),
            ),
        )
