"""Correction of negative down-sampling: scores are probabilities of all rows, not of the kept rows.

A model that learns all positives and a share r of the negatives learns odds that are 1 / r times too high:

    logit(p) = logit(p_sampled) + log r                             (He et al., ADKDD 2014, section 6.3)

The correction is one number that is added to the logit of every row. So it is added to the output bias of the model
whenever the model is used outside training: for validations, best weights and token sources. All users of these weights
(prediction, explanation, bundle, server) include it once, without code for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from longrec.data.log import Log
from longrec.data.negative_sampling import sample_negatives
from longrec.errors import ConfigError, DataError
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of
from longrec.training.settings import FitConfig


@contextmanager
def correct_output_bias(model: Model, negative_rate: float) -> Iterator[None]:
    """Correct the output bias inside a ``with`` block, and restore the parameters to the bit afterwards."""
    if negative_rate >= 1:
        yield
        return
    bias = _output_bias(model).detach()
    before = bias.clone()
    bias.add_(math.log(negative_rate))
    try:
        yield
    finally:
        bias.copy_(before)


def check_negative_rate(model: Model, fit: FitConfig) -> None:
    """Refuse down-sampling for a model that no shift of the logit corrects.

    Raises:
        ConfigError: a model of several labels, or one whose score has no single output bias.
    """
    if fit.negative_rate >= 1:
        return
    where, do = f"fit.negative_rate: {fit.negative_rate:g}", "remove it, or set fit.sample_weight"
    if model.targets:
        what = f"{name_of(model)} learns {', '.join(model.targets)} beside the label"
        fault = f"{where}: {what}; a row dropped for one label is missing for the others, which no shift corrects; {do}"
        raise ConfigError("config", [fault])
    if len(model.output_biases()) != 1:
        fault = f"{where}: the score of {name_of(model)} has no single output bias to correct (output_biases); {do}"
        raise ConfigError("config", [fault])


def check_negatives_left(log: Log, fit: FitConfig) -> None:
    """Refuse a rate that leaves no negative training row.

    Raises:
        DataError: no negative row is left.
    """
    rows = log.rows_of("train")
    labels = log.labels.take(rows)
    if fit.negative_rate < 1 and len(sample_negatives(rows, labels, fit.negative_rate, fit.seed)) == labels.sum():
        description = f"none of {int((labels == 0).sum()):,} negative training rows is kept"
        raise DataError(f"fit.negative_rate: {fit.negative_rate:g}", description, "at least one", "increase it")


def move_rate(model: Model, old: Model, before: float, now: float) -> None:
    """After a warm start, convert the output bias that ``old`` learned at the rate ``before`` to the rate ``now``.

    A model with a new output on top of the other model is left unchanged. A frozen part, as a teacher, has an output of
    its own.
    """
    prefix, own, biases = model.warm_start_prefix(old), dict(model.named_parameters()), model.output_biases()
    inner = model.get_submodule(prefix.rstrip(".")) if prefix else model
    if isinstance(inner, Model) and not any(parameter.requires_grad for parameter in inner.parameters()):
        biases = inner.output_biases()
    if before == now or len(biases) != 1:
        return
    if any(own[prefix + name].data_ptr() == biases[0].data_ptr() for name, _ in old.named_parameters()):
        biases[0].detach().add_(math.log(before / now))


def _output_bias(model: Model) -> Tensor:
    (bias,) = model.output_biases()
    return bias
