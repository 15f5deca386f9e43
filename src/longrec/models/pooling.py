r"""Pooling: Deep Neural Networks for YouTube Recommendations (the pooled history of its ranking model).

Covington, Adams, Sargin, RecSys 2016. https://doi.org/10.1145/2959100.2959190

Every past event becomes a vector, a mean, sum or maximum pools the vectors of a history, and an MLP reads the result
with the fields of the impression. A baseline for DIN: the same inputs without attention.

    u = pool_t [v_t1; v_t2; ...]                                                    (section 3.2)
    logit = MLP([fields of the impression; u])                                      (section 4)

Departures from the paper
    - one label without watch time: plain cross entropy, not weighted by the time watched;
    - no powers of numeric fields, and no example age; sum and max are offered beside the mean.

Shapes: B rows, U stored positions, D widths, H units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.mlp import MLP
from longrec.nn.segments import Pool, Segments


class PoolingConfig(EmbeddingConfig):
    """Settings of Pooling."""

    pool: Pool = Field("mean", description="Pooling of the events of a history.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the MLP.")
    activation: ActivationName = Field("relu", description="Activation of the MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the MLP.")


class Pooling(TopRanker):
    """MLP over the impression and the pooled histories."""

    Config = PoolingConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"pool": "sum", "batch_norm": False},
        {"pool": "max", "dropout": 0.1, "activation": "dice", "batch_norm": False},
    )
    renamed_parameters: ClassVar[dict[str, str]] = {"mlp": "top"}

    def __init__(self, config: PoolingConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if not fields.histories:
            raise ConfigError("schema", ["histories: pooling reads a history, and the schema has none"])
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        read = [*fields.features, *(field for columns in fields.histories.values() for field in columns)]
        inputs = sum(width[field.name] for field in read)
        self.top = MLP(inputs, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1)
        self.interaction_width = self.top.width

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the pooled columns of each history."""
        inputs = list(embedded.features.values())
        for history, columns in embedded.histories.items():
            segments = Segments.of(batch, history)
            inputs.extend(segments.pool(k_UD, self.config.pool) for k_UD in columns.values())
        return inputs
