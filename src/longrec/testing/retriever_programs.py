"""Check of the ONNX program of a retriever: the scores of a catalog for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from longrec.features.batch import Batch, Layout
from longrec.models.core.kinds import Retriever
from longrec.testing.batches import shared
from longrec.testing.case import Case
from longrec.testing.programs import compare_program, flatten, silence_exporter, unflatten
from longrec.testing.retrievers import lively


def check_exported_scores_agree(case: Case) -> None:
    """The ONNX program of a retriever scores a catalog as the model does, at all sizes. Variants are not traced.

    Nor is a model that serves another one, whose program it is.
    """
    model = lively(case)
    if case.variant or model.served() is not model:
        return
    compare_program(lambda path: _write_program(model, path), lambda batch: _score(model, batch), case.fields)


class _Program(nn.Module):
    """A retriever as a function of flat tensors, in the order of ``names``."""

    def __init__(self, model: Retriever, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the score of each item, ``[1, I]``."""
        return _score(self.model, unflatten(dict(zip(self.names, tensors, strict=True)), self.model.fields))


def _score(model: Retriever, batch: Batch) -> Tensor:
    """Return the scores of the candidates as a catalog, for the request of a shared batch."""
    request = replace(batch, layout=Layout.shared(1), candidates={})
    with torch.no_grad():
        return model.score_catalog(request, batch.candidates)


def _write_program(model: Retriever, path: Path) -> None:
    # The lengths of an example differ, so that no two free dimensions are taken for one, and none is 1.
    example = flatten(shared(5, 7, fields=model.fields, apart=2))
    fixed = {f"f__{field.name}__offsets" for field in model.fields.features if field.side != "item"}
    shapes = tuple(
        {0: torch.export.Dim.DYNAMIC} if len(value) > 1 and name not in fixed else {} for name, value in example.items()
    )
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            _Program(model, list(example)).eval(),
            tuple(example.values()),
            input_names=list(example),
            dynamic_shapes=(shapes,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


CHECKS: tuple[Callable[[Case], None], ...] = (check_exported_scores_agree,)
"""Checks of the program of every retriever."""
