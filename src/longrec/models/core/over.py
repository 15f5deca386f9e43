"""Base class of rankers that are built on another ranker.

Shapes: C candidates, K labels, H width of a representation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import build_base, name_of
from longrec.nn.embedding import Embedded


class Over(Ranker):
    """A ranker over another one, ``base``: each part that a subclass does not override is the base's.

    A subclass calls ``set_base`` in its constructor.
    """

    base: Ranker

    def set_base(self, section: Mapping[str, Any], fields: Fields, where: str = "model.base") -> None:
        """Build the base and take over its flags.

        Args:
            where: path of the section in the config.
        """
        self.base = build_base(section, fields, where)
        self.reads_history, self.order_matters = self.base.reads_history, self.base.order_matters
        self.user_order, self.interaction_width = self.base.user_order, self.base.interaction_width
        self.reads_groups = self.base.reads_groups

    @property
    def innermost(self) -> Ranker:
        """The ranker that all rankers over rankers from here on are built on."""
        return self.base.innermost if isinstance(self.base, Over) else self.base

    def embed(self, batch: Batch) -> Embedded:
        """Look up the vectors of the base, and those of this model's own tables."""
        embedded, further = self.base.embed(batch), self.embed_further(batch)
        return replace(embedded, further={**embedded.further, **further}) if further else embedded

    def interact(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "C H"]:
        """Return the representation of every candidate by the base."""
        return self.base.interact(batch, embedded)

    def head(self, h_CH: Float[Tensor, "C H"]) -> Float[Tensor, "C K"]:
        """Return the head of the base."""
        return self.base.head(h_CH)

    def output_biases(self) -> Sequence[Tensor]:
        """Return the output biases of the base."""
        return self.base.output_biases()

    def label_loss(self, logits_CK: Float[Tensor, "C K"], batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the labels, as the base computes it."""
        return self.base.label_loss(logits_CK, batch)

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base."""
        return self.base.aux_loss(batch, embedded)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the explanation of the base."""
        return self.base.explain(batch)

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base, for a run of a ranker of its kind."""
        return "" if name_of(other) == name_of(self) else "base."
