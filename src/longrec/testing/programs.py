"""Checks of the traced graph of every model, and of the ONNX program that is made of it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.features.fields import Field, Fields
from longrec.models.core.kinds import Encoder, Ranker
from longrec.models.core.translations import list_translations
from longrec.onnx_import import import_onnxruntime
from longrec.testing.batches import of_layout, shared
from longrec.testing.case import Case, output_of, scores
from longrec.testing.expect import expect_close

SHAPES = [(100, 100), (100, 37), (7, 100), (1, 1), (500, 300), (3, 0), (1, 0)]
"""(candidates, events) at which the exported program must agree."""


def check_exported_program_agrees(case: Case) -> None:
    """The ONNX program of a model scores as the model, at all sizes.

    Of a variant it is the graph that such a program is made of, which takes a third of the time.
    """
    if not case.variant:
        program_agrees(case, case.few)
        return
    model = case.frozen(case.few)
    graph = capture(model).module()
    for seed, (candidates, events) in enumerate(SHAPES):
        if candidates > 1 and events > 1:  # a graph may take 0 and 1 for sizes of their own, a program does not
            batch = shared(candidates, events, seed, case.few)
            with torch.no_grad():
                actual = graph(*flatten(batch).values())
            where = f"the traced graph, {candidates} candidates, {events} events, scores otherwise than the model"
            expect_close(actual, scores(model, batch), where, atol=1e-4)


def program_agrees(case: Case, fields: Fields) -> None:
    """Check that the ONNX program of a model returns the same scores as the model, at all sizes."""
    model = case.frozen(fields)
    compare_program(lambda path: write_program(model, path), lambda batch: scores(model, batch), fields)


def compare_program(write: Callable[[Path], None], score: Callable[[Batch], Tensor], fields: Fields) -> None:
    """Compare an ONNX program with the scores of its model for shared batches, at all sizes.

    Args:
        write: function that writes the program to a path.
        score: function that returns what the program shall return.

    Raises:
        ConformanceError: another result at some size.
    """
    onnxruntime = import_onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    for seed, (candidates, events) in enumerate(SHAPES):
        batch = shared(candidates, events, seed, fields)
        feed = {name: tensor.numpy() for name, tensor in flatten(batch).items() if name in taken}
        (actual,) = session.run(None, feed)
        where = f"the ONNX program, {candidates} candidates, {events} events, scores otherwise than the model"
        expect_close(torch.from_numpy(actual), score(batch), where, atol=1e-4)


CHECKS: tuple[Callable[[Case], None], ...] = (check_exported_program_agrees,)
"""Checks of the traced graph and of the program of every model."""


class Program(nn.Module):
    """A model as a function of flat tensors, in the order of ``names``."""

    def __init__(self, model: Ranker | Encoder, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the output of the model for each candidate."""
        return output_of(self.model, unflatten(dict(zip(self.names, tensors, strict=True)), self.model.fields))


def flatten(batch: Batch) -> dict[str, Tensor]:
    """Return a shared batch as named tensors, as a program takes them."""
    tensors: dict[str, Tensor] = {}

    def put(name: str, column: Tensor | Jagged) -> None:
        if isinstance(column, Tensor):
            tensors[name] = column
            return
        tensors[f"{name}__values"], tensors[f"{name}__offsets"] = column.values, column.offsets
        if column.weights is not None:
            tensors[f"{name}__weights"] = column.weights

    for name, column in batch.features.items():
        put(f"f__{name}", column)
    for history, events in batch.histories.items():
        for name, column in events.columns.items():
            put(f"{history}__{name}", column)
    return tensors


def unflatten(tensors: Mapping[str, Tensor], fields: Fields) -> Batch:
    """Return the shared batch that ``flatten`` took apart. Traceable."""

    def get(name: str, field: Field) -> Tensor | Jagged:
        if field.kind != "multi_id":
            return tensors[name]
        return Jagged(tensors[f"{name}__values"], tensors[f"{name}__offsets"], tensors.get(f"{name}__weights"))

    features = {field.name: get(f"f__{field.name}", field) for field in fields.features}
    histories = {
        name: HistoryBatch({f.name: get(f"{name}__{f.name}", f) for f in columns}, torch.arange(2))
        for name, columns in fields.histories.items()
    }
    own = next(field.name for field in fields.features if field.side == "item" and field.kind != "multi_id")
    return of_layout(Layout.shared(tensors[f"f__{own}"].shape[0]), features, histories, fields)


def capture(model: Ranker | Encoder) -> torch.export.ExportedProgram:
    """Trace the graph of a model, with dynamic numbers of candidates, events and values."""
    from torch._dynamo import config as dynamo_config  # takes two seconds, which the tracing takes anyway

    one = {f"f__{value.name}" for value in model.fields.features if value.side != "item"}
    fixed = one | {f"{name}__offsets" for name in one}
    # Lengths that all differ, so that no two free dimensions are taken for one; and none that is 1 by chance.
    examples = (flatten(shared(5, 7, seed, model.fields, apart=2)) for seed in range(1, 50))
    example = next(e for e in examples if all(len(value) > 1 for name, value in e.items() if name not in fixed))
    shapes = tuple({} if name in fixed else {0: torch.export.Dim.DYNAMIC} for name in example)
    module = Program(model, list(example)).eval()
    # The cache of fake tensors finds little in one trace, and takes a third of its time.
    without_cache = dynamo_config.patch(fake_tensor_cache_enabled=False)
    with silence_exporter(), torch.no_grad(), without_cache:
        return torch.export.export(module, tuple(example.values()), dynamic_shapes=(shapes,), strict=False)


def write_program(model: Ranker | Encoder, path: Path) -> None:
    """Write the ONNX program of a model."""
    names = list(flatten(shared(5, 7, fields=model.fields)))
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            capture(model),
            input_names=names,
            dynamo=True,
            custom_translation_table=list_translations(),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


@contextlib.contextmanager
def silence_exporter() -> Iterator[None]:
    """Silence messages of the exporter about missing packages and its own code."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*is deprecated", FutureWarning)
            yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
