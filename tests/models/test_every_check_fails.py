"""Every check of the conformance suite can fail: a fault is planted for each, in a model or in what trains it.

``test_planted_faults.py`` plants faults in the layers of DIN, each of which several checks must detect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from test_planted_faults import FAULTS
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.generation.beam import Beams
from longrec.models.core import generator
from longrec.models.core.kinds import ListScores, Ranker, Reranker, VectorRetriever
from longrec.models.covisit import CoVisit
from longrec.models.din import DIN, DINConfig
from longrec.models.iat import IAT
from longrec.models.prm import PRM
from longrec.models.sasrec import SASRec
from longrec.models.unirec import UniRec
from longrec.nn import self_attention
from longrec.testing import texts
from longrec.testing.case import Case
from longrec.testing.expect import ConformanceError
from longrec.testing.suite import ALL, check_case
from longrec.training.sparse_optimizers import LazyAdam

Patch = pytest.MonkeyPatch
Wrong = Callable[..., Any]


def around(patch: Patch, owner: Any, name: str, wrong: Callable[[Any], Wrong]) -> None:
    """Replace a function by one that is made of it."""
    patch.setattr(owner, name, wrong(getattr(owner, name)))


def output(change: Callable[[Any, Batch, Tensor], Tensor]) -> Callable[[Patch], None]:
    """A fault in the logits of DIN, made of the model, the batch and the right logits."""
    return lambda patch: around(
        patch, DIN, "forward", lambda right: lambda self, batch: change(self, batch, right(self, batch))
    )


def grouped_rows_in_another_order(model: DIN, batch: Batch, logit_B: Tensor) -> Tensor:
    return logit_B.roll(1) if batch.layout.kind == "grouped" else logit_B


def other_scores_in_a_program(model: DIN, batch: Batch, logit_B: Tensor) -> Tensor:
    return logit_B + 1 if torch.compiler.is_compiling() else logit_B


def other_scores_in_bfloat16(model: DIN, batch: Batch, logit_B: Tensor) -> Tensor:
    return 2 * logit_B if torch.is_autocast_enabled("cpu") else logit_B


def a_bias_counts_twice(model: DIN, batch: Batch, logit_B: Tensor) -> Tensor:
    return logit_B + model.output_biases()[0]


def tokens_are_written_into(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def read(self: DIN, batch: Batch, embedded: Any) -> Any:
            for history in batch.histories.values():
                for column in history.columns.values():
                    if isinstance(column, Tensor) and column.is_floating_point():
                        column.data += 1
            return right(self, batch, embedded)

        return read

    around(patch, DIN, "read", wrong)


def a_number_outside_the_state(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def train(self: DIN, mode: bool = True) -> DIN:
            self.trained = getattr(self, "trained", False) or mode
            return right(self, mode)

        return train

    around(patch, DIN, "train", wrong)
    output(lambda model, batch, logit_B: logit_B + model.trained)(patch)


def another_start_each_time(patch: Patch) -> None:
    number = count()

    def wrong(right: Wrong) -> Wrong:
        def start(self: DIN, config: Any, fields: Any) -> None:
            right(self, config, fields)
            self.top.last.bias.data += next(number)

        return start

    around(patch, DIN, "__init__", wrong)


def a_loss_without_weights(patch: Patch) -> None:
    around(patch, Ranker, "loss", lambda right: lambda self, batch: right(self, replace(batch, weight=None)))


def a_loss_that_grows(patch: Patch) -> None:
    around(patch, Ranker, "loss", lambda right: lambda self, batch: -right(self, batch))


def a_step_moves_every_row(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def step(self: LazyAdam) -> None:
            right(self)
            for group in self.param_groups:
                for table in group["params"]:
                    table.data += 1

        return step

    around(patch, LazyAdam, "step", wrong)


def every_weight_but_the_last_is_explained(patch: Patch) -> None:
    around(
        patch,
        DIN,
        "explain",
        lambda right: lambda self, batch: {name: w[..., :-1] for name, w in right(self, batch).items()},
    )


def no_output_bias(patch: Patch) -> None:
    patch.setattr(DIN, "output_biases", lambda self: ())


def scores_of(change: Callable[[Batch, Tensor], Tensor]) -> Callable[[Patch], None]:
    """A fault in the scores of a catalog, made of the batch and the right scores."""
    return lambda patch: around(
        patch,
        VectorRetriever,
        "score_catalog",
        lambda right: lambda self, batch, catalog: change(batch, right(self, batch, catalog)),
    )


def another_scale_each_time(patch: Patch) -> None:
    number = count()

    def wrong(right: Wrong) -> Wrong:
        def start(self: SASRec, config: Any, fields: Any) -> None:
            right(self, config, fields)
            self.scale = next(number)

        return start

    around(patch, SASRec, "__init__", wrong)
    around(patch, SASRec, "users", lambda right: lambda self, batch: right(self, batch) * (1 + self.scale))


def an_event_later_is_read(patch: Patch) -> None:
    around(
        patch, SASRec, "states", lambda right: lambda self, batch: right(self, batch) + right(self, batch).roll(-1, 0)
    )


def a_frozen_parameter(patch: Patch) -> None:
    around(
        patch, self_attention, "attend_to_earlier", lambda right: lambda qkv, *others: right(qkv, *others).detach() * 0
    )
    patch.setattr("longrec.models.sasrec.attend_to_earlier", self_attention.attend_to_earlier)


def other_scores_of_a_catalog(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        return lambda self, *arguments: right(self, *arguments) + (1 if torch.compiler.is_compiling() else 0)

    around(patch, SASRec, "score_catalog", wrong)


def unweighted_targets(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        return lambda self, batch: right(self, replace(batch, targets=replace(batch.targets, weight=None)))

    around(patch, SASRec, "loss", wrong)


def a_value_of_a_target_is_read(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        return lambda self, batch: right(self, batch) * (1 if int(batch.targets.state[0]) >= 0 else 2)

    around(patch, SASRec, "loss", wrong)


def lists(change: Callable[[Batch, Tensor], Tensor]) -> Callable[[Patch], None]:
    """A fault in the scores of lists, made of the batch and the right scores."""

    def wrong(right: Wrong) -> Wrong:
        def score(self: PRM, batch: Batch, rank_C: Tensor | None = None) -> ListScores:
            scores = right(self, batch, rank_C)
            return replace(scores, score=change(batch, scores.score))

        return score

    return lambda patch: around(patch, PRM, "score_lists", wrong)


def rows_of_padding(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def embed(self: PRM, batch: Batch, *others: Tensor) -> Tensor:
            self.input(torch.zeros(batch.size + 1, self.input.in_features))
            return right(self, batch, *others)

        return embed

    around(patch, PRM, "_embed", wrong)


def the_base_in_bfloat16(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def read(self: PRM, batch: Batch) -> tuple[Tensor, Tensor]:
            logit_C, h_CH = right(self, batch)
            return (logit_C.bfloat16().float() if torch.is_autocast_enabled("cpu") else logit_C), h_CH

        return read

    around(patch, Reranker, "read_base", wrong)


def another_scale_of_lists_each_time(patch: Patch) -> None:
    number = count(1)

    def wrong(right: Wrong) -> Wrong:
        def start(self: PRM, config: Any, fields: Any) -> None:
            right(self, config, fields)
            self.scale = next(number)

        return start

    around(patch, PRM, "__init__", wrong)
    around(
        patch,
        PRM,
        "score_lists",
        lambda right: (
            lambda self, batch, rank_C=None: replace(
                scores := right(self, batch, rank_C), score=scores.score * self.scale
            )
        ),
    )


def the_host_reads_values_of_a_list(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        return lambda self, batch: right(self, batch) * (1 if int(batch.label[0]) + int(batch.label[1]) >= 0 else 2)

    around(patch, Reranker, "loss", wrong)


def logits_that_read_their_own_token(patch: Patch) -> None:
    def wrong(right: Wrong) -> Wrong:
        def read(self: UniRec, batch: Batch) -> list[Tensor]:
            tokens = self.target_tokens(batch)
            return [logits * (1 + tokens[:, step : step + 1]) for step, logits in enumerate(right(self, batch))]

        return read

    around(patch, UniRec, "target_logits", wrong)


def steps_of(change: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    """A fault in the logits of the steps of UniRec."""
    return lambda patch: around(
        patch, UniRec, "step", lambda right: lambda self, *inputs, **more: change(right(self, *inputs, **more))
    )


def searched(change: Callable[[Beams], Beams]) -> Callable[[Patch], None]:
    """A fault in what a beam search returns."""
    return lambda patch: around(
        patch, generator, "search_beams", lambda right: lambda *inputs, **more: change(right(*inputs, **more))
    )


class Loose(DINConfig, extra="ignore"):
    """Settings that take any key."""


PLANTED: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "grouped_batch_is_learned_as_single": ("din", output(grouped_rows_in_another_order)),
    "exported_program_agrees": ("din", output(other_scores_in_a_program)),
    "bfloat16_is_near": ("din", output(other_scores_in_bfloat16)),
    "the_correction_of_sampled_negatives_is_applied_once": ("din", output(a_bias_counts_twice)),
    "instance_tokens_and_knowledge_are_read": ("din", tokens_are_written_into),
    "saved_and_loaded": ("din", a_number_outside_the_state),
    "same_seed_same_weights": ("din", another_start_each_time),
    "a_loss_is_the_weighted_mean_over_rows": ("din", a_loss_without_weights),
    "learns": ("din", a_loss_that_grows),
    "only_touched_rows_move": ("din", a_step_moves_every_row),
    "what_is_explained_fits_the_histories": ("din", every_weight_but_the_last_is_explained),
    "order_matters_as_declared": ("din", lambda patch: patch.setattr(DIN, "order_matters", True)),
    "the_first_predictions_are_the_base_rates": ("din", no_output_bias),
    "misspelt_settings_are_refused": ("din", lambda patch: patch.setattr(DIN, "Config", Loose)),
    "docstring_cites": (
        "din",
        lambda patch: around(patch, texts, "describe", lambda right: lambda name: replace(right(name), link="")),
    ),
    "settings_are_described": ("din", lambda patch: patch.setattr(texts, "help_text", lambda name: "")),
    "vectors_have_the_declared_width": (
        "iat",
        lambda patch: around(patch, IAT, "encode", lambda right: lambda self, batch: right(self, batch)[:, :-1]),
    ),
    "codes_stand_for_the_vectors": (
        "iat",
        lambda patch: around(patch, IAT, "codes", lambda right: lambda self, batch: right(self, batch) ^ 1),
    ),
    "one_finite_score_an_item": ("sasrec", scores_of(lambda batch, s_RI: s_RI[:, :-1])),
    "requests_do_not_see_each_other": ("sasrec", scores_of(lambda batch, s_RI: s_RI + s_RI.mean(0))),
    "every_layout_scores_alike": ("sasrec", scores_of(lambda batch, s_RI: s_RI + (batch.layout.kind == "shared"))),
    "order_of_events_matters_as_declared": ("sasrec", lambda patch: patch.setattr(SASRec, "order_matters", False)),
    "a_retriever_is_saved_and_loaded": ("sasrec", another_scale_each_time),
    "a_state_reads_no_later_event": ("sasrec", an_event_later_is_read),
    "exported_scores_agree": ("sasrec", other_scores_of_a_catalog),
    "targets_reach_every_parameter": ("sasrec", a_frozen_parameter),
    "a_loss_is_the_weighted_mean_over_targets": ("sasrec", unweighted_targets),
    "targets_are_learned": (
        "sasrec",
        lambda patch: around(
            patch, SASRec, "loss", lambda right: lambda self, batch: right(self, batch) * (-1 if self.training else 1)
        ),
    ),
    "a_step_of_targets_on_another_device": ("sasrec", a_value_of_a_target_is_read),
    "probabilities_of_a_list_sum_to_one": (
        "prm",
        lambda patch: patch.setattr(ListScores, "probability", property(lambda self: self.score.sigmoid())),
    ),
    "lists_do_not_see_each_other": ("prm", lists(lambda batch, s_C: s_C * s_C.mean())),
    "a_shared_list_scores_as_grouped": ("prm", lists(lambda batch, s_C: s_C * (1 + (batch.layout.kind == "shared")))),
    "no_layer_computes_on_padding": ("prm", rows_of_padding),
    "lists_reach_every_parameter": ("prm", lambda patch: patch.setattr(Reranker, "train", nn.Module.train)),
    "lists_are_learned": (
        "prm",
        lambda patch: around(
            patch, Reranker, "loss", lambda right: lambda self, batch: right(self, batch) * (-1 if self.training else 1)
        ),
    ),
    "bfloat16_keeps_the_initial_order": ("prm", the_base_in_bfloat16),
    "a_step_of_lists_on_another_device": ("prm", the_host_reads_values_of_a_list),
    "a_reranker_is_saved_and_loaded": ("prm", another_scale_of_lists_each_time),
    "a_step_reads_earlier_tokens_alone": ("unirec", logits_that_read_their_own_token),
    "scores_are_those_of_teacher_forcing": ("unirec", steps_of(lambda logits: 1.1 * logits)),
    "a_wide_beam_is_exact": ("unirec", searched(lambda beams: replace(beams, score=beams.score - 0.1))),
    "a_narrow_beam_is_a_list_of_the_catalog": (
        "unirec",
        searched(lambda beams: replace(beams, leaf=beams.leaf[:, :1].expand_as(beams.leaf))),
    ),
    "programs_of_steps_agree": (
        "unirec",
        steps_of(lambda logits: logits + 1 if torch.compiler.is_compiling() else logits),
    ),
    "every_alternative_can_be_selected": (
        "covisit",
        lambda patch: patch.setattr(CoVisit, "select", lambda self, settings: None),
    ),
}
"""Check -> the model and the fault that it must detect."""
SETTINGS: dict[str, dict[str, Any]] = {
    "din": {},
    "iat": {"codes": {"levels": 2, "size": 8}},
    "sasrec": {},
    "prm": {"base": {"name": "deepfm", "mlp": [8]}, "width": 16, "blocks": 1},
    "covisit": {},
    "unirec": {},
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_check_detects_its_fault_and_passes_without(check: str, monkeypatch: Patch) -> None:
    name, plant = PLANTED[check]
    case = Case(name, SETTINGS[name])
    if case.settings:  # tests/test_every_model.py runs every check of the defaults without a fault
        check_case(case, only=[check])
    plant(monkeypatch)
    with pytest.raises(ConformanceError, match=f": 1 check failed\n  {check}: (?!\\w+Error)") as error:
        check_case(case, only=[check])
    assert error.value.failed == (check,)


def test_every_check_has_a_fault() -> None:
    detected = {name for checks in FAULTS.values() for name in checks}
    assert detected | PLANTED.keys() == ALL.keys()
