r"""YoutubeDNN: Deep Neural Networks for YouTube Recommendations (candidate generation).

Covington, Adams, Sargin, RecSys 2016. https://doi.org/10.1145/2959100.2959190

The recommendation of a video is a classification among millions. A tower of fully connected layers reads the mean of
the videos that a user watched, with features of the user and the context, and its output is compared with the vector
of each video (section 3):

    u = MLP([mean_t e_t; x_1; x_2; ...; a; a^2; sqrt(a)])                  P(i) = exp(<v_i, u>) / sum_j exp(<v_j, u>)

e_t is the sum of the embeddings of the ids of event t, x_f that of feature f of the user or the context, and v_i the
sum of those of the ids of item i. Events and items read the same tables. Training samples the softmax, and corrects the
sample by log Q (``models/core/retrieval.py``). A served score is the plain <v_i, u>.

a is the **example age** (``example_age: true``): how long before the newest target of training a target was, as a share
of the time that training spans. The model learns how popularity changes with it, and is served at the age 0, the end
of training.

``examples_per_user`` is a fixed number of targets of each user, so that active users do not dominate the loss. Each
epoch draws them anew.

Departures from the paper
    - normalization of the mean and of the output, dropout of the mean, and the mean added to the output
      (``models/core/pooled_history.py``): ``input_norm``, ``output_norm`` and ``residual: false`` drop them;
    - the last layer is linear, and not a ReLU, so that vectors of users and of items may have any sign;
    - videos share one table, as inputs and as classes; the paper has a table of classes of its own;
    - a bag of one history, which is the first of the schema: searches would be another one;
    - the age alone enters with its powers; other numbers scale one vector each;
    - the target itself is not corrected by log Q, as it is in its own sum with certainty.

Shapes: R requests, T targets, M of them, I items, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.pooled_history import PooledHistoryConfig, PooledHistoryRetriever
from longrec.models.core.top import Width


class YoutubeDNNConfig(PooledHistoryConfig):
    """Settings of YoutubeDNN."""

    output_norm: bool = Field(True, description="Layer normalization of the vector of a user.")
    example_age: bool = Field(False, description="Read the age of a target in training; serving has the age 0.")
    examples_per_user: Width | None = Field(None, description="Targets of each user in an epoch. Null: all.")


class YoutubeDNN(PooledHistoryRetriever):
    """YoutubeDNN over the first history of the schema."""

    Config = YoutubeDNNConfig
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"example_age": True, "examples_per_user": 2, "draw": "mixed", "dropout": 0.0},
        {
            "mlp": [],
            "input_norm": False,
            "output_norm": False,
            "residual": False,
            "dropout": 0.0,
            "loss": "cross_entropy",
        },
    )

    def __init__(self, config: YoutubeDNNConfig, fields: Fields) -> None:
        super().__init__(config, fields, numbers=3 if config.example_age else 0)
        self.sampling = replace(self.sampling, per_user=config.examples_per_user, age=config.example_age)

    def read_numbers(self, batch: Batch) -> Float[Tensor, "M 3"] | None:
        """Return the example age and its powers in training."""
        targets = batch.targets
        if targets is None or targets.age is None or not self.config.example_age:
            return None
        age_M = targets.age
        if not targets.per_position:
            age_M = age_M.new_zeros(batch.layout.requests).index_copy(0, targets.state, age_M)
        return torch.stack([age_M, age_M.square(), age_M.sqrt()], 1)
