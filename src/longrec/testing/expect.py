"""What a check of the conformance suite raises, and the comparisons that raise it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longrec.errors import ConfigError


class ConformanceError(AssertionError):
    """A model that breaks a rule of the conformance suite.

    Args:
        message: the broken rule, in words that the author of a model understands.
        failed: names of the checks that failed, if several were run.
    """

    def __init__(self, message: str, failed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failed = tuple(failed)


def expect(condition: object, message: str) -> None:
    """Raise a ``ConformanceError`` with this message unless the condition holds.

    >>> expect(2 > 1, "two is more than one")
    >>> expect(1 > 2, "one is not more than two")
    Traceback (most recent call last):
    longrec.testing.expect.ConformanceError: one is not more than two
    """
    if not condition:
        raise ConformanceError(message)


def expect_close(actual: Tensor, expected: Tensor, message: str = "tensors differ", atol: float = 2e-5) -> None:
    """Raise a ``ConformanceError`` unless two tensors agree up to the rounding of float32. The message has both.

    Args:
        atol: largest difference of numbers up to 1. Sums of larger numbers that cancel keep the error of their terms,
            so that it grows with the largest number.
    """
    largest = float(expected.detach().abs().max()) if expected.numel() and expected.is_floating_point() else 1.0
    atol *= max(1.0, largest) if math.isfinite(largest) else 1.0
    try:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)
    except AssertionError as error:
        numbers = " ".join(str(error).split("\n\n")[-1].split())
        raise ConformanceError(f"{message}: {numbers}") from None


def expect_config_error(act: Callable[[], object], text: str, message: str) -> None:
    """Raise a ``ConformanceError`` unless a call raises a ``ConfigError`` that contains the text."""
    try:
        act()
    except ConfigError as error:
        expect(re.search(re.escape(text), str(error)), f"{message}: the error says {error}, expected {text!r} in it")
        return
    raise ConformanceError(f"{message}: accepted")
