r"""RFT and DPO: Direct Preference Optimization: Your Language Model is Secretly a Reward Model.

Rafailov, Sharma, Mitchell, Ermon, Manning, Finn, NeurIPS 2023. https://arxiv.org/abs/2305.18290

The second stage of training of a generator, as UniRec (arXiv 2604.12234) does it. A generator that has learned to write
the next item (``fit.init_from``) learns from rewards, and from what a user preferred among the items of one request:

    L = L_RFT + lambda_DPO L_DPO

    A_i   = R_i - mean(R),     A'_i = clip(A_i / (rms(A) + eps), -c, c)                (rewards of a batch)
    L_RFT = sum_i (1 + lambda A'_i) alpha_i sum_t -log p(y_it | y_i<t, u) / sum_i alpha_i

    L_DPO = - log sigmoid(beta [log pi(x_i) - log pi_ref(x_i) - log pi(x_j) + log pi_ref(x_j)])   (mean over pairs)
    log pi(x) = sum_{t<S} sg[log p(y_t | y_<t, u)] + log p(y_S | y_<S, u)              (sg: no gradient)

R_i is a weighted sum of feedback (``rewards``). x_i is a target, x_j was shown in its request, and x_i was preferred:
``levels`` names feedback, the weakest first. A feedback that was not available at the end of the training window makes
no item the less preferred one, and its reward no advantage (data/preferences.py). pi_ref is the generator before this
stage, frozen. With ``dpo_scope: head`` the input of the last head is detached too, so that L_DPO trains only this head.

The scores, the search and the export are the generator's.

Departures from the paper
    - lambda and c are 0.5 and 2, which UniRec leaves open. lambda c is at most 1, so that no likelihood is minimized;
    - equal rewards in a batch have the advantage 0, and a target without a reward the weight 1;
    - each target that is preferred has ``losers`` pairs in a batch, drawn at random, all with one weight;
    - pi has the dropout of training, pi_ref has none;
    - pairs with an item without codes are left out.

Shapes: T targets, S steps, P pairs, V tokens of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column
from longrec.features.fields import Fields
from longrec.generation.beam import Steps
from longrec.generation.trie import Trie
from longrec.models.core.base import Model
from longrec.models.core.generator import Generated, Generator
from longrec.models.core.kinds import Retriever
from longrec.models.core.registry import BaseSection, build, name_of
from longrec.models.core.rules import find_alignment_faults
from longrec.models.core.top import Width

_EPSILON = 1e-6


class AlignmentConfig(Strict):
    """Settings of RFT and DPO."""

    rules = (find_alignment_faults,)

    base: BaseSection = Field(
        {"name": "unirec"}, description="Model section of the generator, as in the run that `fit.init_from` names."
    )
    rewards: dict[str, float] = Field(
        {},
        description="weight of each feedback in the reward of a target, such as `{click: 1, like: 3}`: feedback "
        "features of 0 and 1, `label`, or columns of `data.weights`; default: equal rewards",
    )
    reward_weight: float = Field(0.5, ge=0, description="Weight lambda of the advantage in the weight of a target.")
    clip: float = Field(2.0, gt=0, description="Largest advantage c. lambda c must not be more than 1.")
    levels: tuple[str, ...] = Field(
        ("label",), description="feedback by which the items of a request are preferred, the weakest first"
    )
    dpo_weight: float = Field(0.15, ge=0, description="Weight lambda_DPO of the loss of pairs.")
    beta: float = Field(0.1, gt=0, description="Scale of the log-ratios in the loss of pairs.")
    dpo_scope: Literal["head", "backbone"] = Field(
        "head", description="what the loss of pairs trains: the head of the last step, or all that it reads"
    )
    losers: Width = Field(1, description="Pairs of a preferred target in a batch.")


class Alignment(Generator):
    """RFT and DPO over a trained generator, ``base``.

    Attributes:
        base: the generator in training.
        reference: pi_ref, the generator of the run that training started from.
    """

    Config = AlignmentConfig
    order_matters = True
    needs_init_from = True
    starts_from_best = True
    monitors = ("pair_accuracy",)
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "base": {
                "name": "unirec",
                "attributes": ["category"],
                "embedding_dim": 16,
                "head": "linear",
                "pairs": [],
                "static": False,
            },
            "dpo_scope": "backbone",
        },
    )

    def __init__(self, config: AlignmentConfig, fields: Fields) -> None:
        Retriever.__init__(self, config, fields)  # the path is that of the base
        base, name = build(config.base, fields, prefix="model.base"), config.base["name"]
        if not isinstance(base, Generator) or isinstance(base, Alignment):
            raise ConfigError("config", [f"model.base.name: {name} is no generator; name one, such as unirec"])
        self.base, self.reference = base, copy.deepcopy(base).requires_grad_(False).eval()
        self.path, self.attributes, self.sampling = base.path, base.attributes, base.sampling
        self.reads_sequences, self.order_matters = base.reads_sequences, base.order_matters

    @property
    def levels(self) -> tuple[str, ...]:
        """The feedback that orders the items of a request. Empty without a loss of pairs."""
        return self.config.levels if self.config.dpo_weight else ()

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation. The reference stays in evaluation."""
        super().train(mode)
        self.reference.eval()
        return self

    def served(self) -> Model:
        """Return the generator."""
        return self.base

    def warm_start_prefix(self, other: Model) -> str:
        """Return the prefix of the base for a run of a generator."""
        return "" if name_of(other) == name_of(self) else "base."

    def receive_base(self) -> None:
        """Take the weights of the base as those of the reference."""
        self.reference.load_state_dict(self.base.state_dict())

    def encode(self, batch: Batch) -> Any:
        """Return what the steps of the base read."""
        return self.base.encode(batch)

    def step(self, memory: Any, prefix: Tensor) -> Float[Tensor, "R W V"]:
        """Return the logits of the base."""
        return self.base.step(memory, prefix)

    def pack_memory(self, memory: Any) -> dict[str, Tensor]:
        """Return the tensors of the base."""
        return self.base.pack_memory(memory)

    def unpack_memory(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return what the steps of the base read of one request."""
        return self.base.unpack_memory(tensors)

    def score_tokens(self, memory: Any, prefix: Tensor) -> Float[Tensor, "R W V"]:
        """Return what each next token adds to a score of the base."""
        return self.base.score_tokens(memory, prefix)

    def score_paths(self, memory: Any, token_IS: Tensor) -> Float[Tensor, " I"]:
        """Return the scores of paths by the base."""
        return self.base.score_paths(memory, token_IS)

    def open_search(self, memory: Any) -> Steps:
        """Return the steps of a search of the base."""
        return self.base.open_search(memory)

    def score_catalog(self, batch: Batch, catalog: Mapping[str, Column]) -> Float[Tensor, "R I"]:
        """Return the scores of the base."""
        return self.base.score_catalog(batch, catalog)

    def score_best(self, batch: Batch, catalog: Mapping[str, Column], count: int) -> Float[Tensor, "R I"]:
        """Return the scores of a search of the base."""
        return self.base.score_best(batch, catalog, count)

    def generate(self, batch: Batch, trie: Trie, count: int, width: int | None = None) -> Generated:
        """Return what the base generates."""
        return self.base.generate(batch, trie, count, width)

    def target_logits(self, batch: Batch, detach_last: bool = False) -> list[Float[Tensor, "T V"]]:
        """Return the logits of the base for the targets of a batch."""
        return self.base.target_logits(batch, detach_last)

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return L, in float32. A batch without pairs has no L_DPO, and one without rewards equal ones.

        Raises:
            ValueError: if the batch has no targets.
        """
        targets, config = batch.targets, self.config
        if targets is None:
            raise ValueError("a retriever needs a batch with targets")
        token_TS = self.target_tokens(batch)
        servable_T = self._is_servable(token_TS)
        pairs = targets.pairs if config.dpo_weight else None
        is_apart = pairs is not None and config.dpo_scope == "head"
        logits = self.target_logits(batch, detach_last=is_apart)
        log_TS = read_tokens(logits, token_TS)
        loss = self._compute_rft(-log_TS.sum(1).masked_fill(~servable_T, 0), targets.weight, targets.reward)
        if pairs is None:
            return loss
        last_T = read_tokens(logits[-1:], token_TS[:, -1:])[:, 0] if is_apart else log_TS[:, -1]
        with torch.no_grad():
            reference_T = self.reference.log_probabilities(batch).sum(1)
        ratio_T = log_TS[:, :-1].detach().sum(1) + last_T - reference_T
        both_P = servable_T[pairs].all(0)
        return loss + config.dpo_weight * compute_dpo_loss(ratio_T, pairs, both_P, config.beta)

    def _compute_rft(self, loss_T: Tensor, alpha_T: Tensor | None, reward_T: Tensor | None) -> Tensor:
        config = self.config
        alpha_T = torch.ones_like(loss_T) if alpha_T is None else alpha_T
        weight_T = alpha_T
        if reward_T is not None:
            weight_T = alpha_T * compute_reward_weights(reward_T, alpha_T > 0, config.reward_weight, config.clip)
        total = alpha_T.sum()
        return (loss_T * weight_T).sum() / total.masked_fill(total == 0, 1)


def read_tokens(logits: Sequence[Tensor], token_TS: Tensor) -> Float[Tensor, "T S"]:
    """Return the log-probability of each token by the logits of its step, in float32."""
    logs = [x.float().log_softmax(1).gather(1, token_TS[:, step : step + 1]) for step, x in enumerate(logits)]
    return torch.cat(logs, 1)


def compute_reward_weights(
    reward_T: Tensor, counts_T: Tensor, reward_weight: float, clip: float
) -> Float[Tensor, " T"]:
    """Return 1 + lambda A' of each target: 1 without a reward, and where all rewards are equal.

    Args:
        reward_T: NaN for a target without a reward.
        counts_T: True for the targets whose rewards make up mean and RMS.
    """
    counts_T = counts_T & ~reward_T.isnan()
    count = counts_T.sum().clamp(min=1)
    # Relative to the least reward, equal rewards are 0 exactly, and so is their mean.
    least = reward_T.masked_fill(~counts_T, torch.inf).amin().nan_to_num(posinf=0.0)
    own_T = (reward_T - least).masked_fill(~counts_T, 0)
    advantage_T = (own_T - own_T.sum() / count).masked_fill(~counts_T, 0)
    rms = (advantage_T.square().sum() / count).sqrt()
    return 1 + reward_weight * (advantage_T / (rms + _EPSILON)).clamp(-clip, clip)


def compute_dpo_loss(ratio_T: Tensor, pairs: Tensor, counts_P: Tensor, beta: float) -> Float[Tensor, ""]:
    """Return the mean of - log sigmoid(beta (ratio of the preferred target - that of the other one)).

    Args:
        ratio_T: log pi - log pi_ref of each target.
        pairs: int64 ``[2, P]``, preferred and other targets.
        counts_P: True for the pairs that count. Without any, the loss is 0.
    """
    loss_P = -F.logsigmoid(beta * (ratio_T[pairs[0]] - ratio_T[pairs[1]]))
    return loss_P.masked_fill(~counts_P, 0).sum() / counts_P.sum().clamp(min=1)
