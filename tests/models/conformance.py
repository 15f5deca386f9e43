"""Conformance suite: checks that every model must pass, as functions of one case (a model's name and settings).

``tests/test_every_model.py`` runs them over every model in the folder and every variant.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from sample_batches import (
    FEW,
    FIELDS,
    TOKENS,
    flat,
    pick,
    ragged,
    repeated,
    shared,
    take,
    unflat,
    values,
    with_feature,
    with_history,
)
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core import artifact
from longrec.models.core.base import Encoder, Model, Ranker, bce_loss, build, describe, find, help_text
from longrec.models.core.citation import citation
from longrec.train import negative_correction
from longrec.train.settings import FitConfig
from longrec.train.sparse_optimizers import LazyAdam

SHAPES = [(100, 100), (100, 37), (7, 100), (1, 1), (500, 300), (3, 0), (1, 0)]
"""(candidates, events) at which the exported program must agree."""


@dataclass(frozen=True)
class Case:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())]).replace(" ", "")

    def build(self, seed: int = 0, fields: Fields = FIELDS) -> Model:
        torch.manual_seed(seed)
        return build({"name": self.name, **self.settings}, fields)

    def lively(self, fields: Fields = FIELDS) -> Ranker | Encoder:
        """Return a model in evaluation mode with parameters and statistics that differ from their initial values."""
        key = str(self), id(fields)
        if key not in _LIVELY:
            while len(_LIVELY) > 2:
                del _LIVELY[next(iter(_LIVELY))]
            _LIVELY[key] = self._enliven(fields)
        return copy.deepcopy(_LIVELY[key])

    def _enliven(self, fields: Fields) -> Ranker | Encoder:
        model = self.build(fields=fields)
        kind = type(model).__mro__[1].__name__
        assert isinstance(model, Ranker | Encoder), f"the suite covers rankers and encoders; add checks for a {kind}"
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.3))
            for table in model.embedding_parameters():
                table.add_(torch.randn_like(table) * 0.4)
            model.train()
            for seed in range(6):
                model(_ragged(seed, fields))
        return model.eval()


_LIVELY: dict[tuple[str, int], Ranker | Encoder] = {}
"""Cache of the latest models. The checks of a case follow each other."""
_BATCHES: dict[tuple[int, int], Batch] = {}


def forget() -> None:
    """Clear the cache of models, after a change of their code."""
    _LIVELY.clear()


def _ragged(seed: int, fields: Fields) -> Batch:
    """Return a cached batch of the fields of the suite."""
    key = seed, id(fields)
    if key not in _BATCHES:
        _BATCHES[key] = ragged(64, seed=seed, fields=fields)
    return _BATCHES[key]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def model_output(model: Ranker | Encoder, batch: Batch) -> Tensor:
    """Return the output of a model for each row: the logit ``[B]`` of a ranker, the vector ``[B, W]`` of an encoder."""
    return model.encode(batch) if isinstance(model, Encoder) else model(batch)


def scores(model: Ranker | Encoder, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model_output(model, batch)


def check_one_finite_score_a_row(case: Case) -> None:
    model = case.lively()
    for rows in (1, 2, 9):
        actual = scores(model, ragged(rows))
        assert actual.shape == ((rows, model.width) if isinstance(model, Encoder) else (rows,))
        assert actual.dtype == torch.float32
        assert actual.isfinite().all()
        with torch.no_grad():
            logit = model(ragged(rows))
        assert logit.shape == (rows,)
        assert logit.isfinite().all()
    assert len(scores(model, ragged(9)).unique(dim=0)) == 9


def check_rows_do_not_see_each_other(case: Case) -> None:
    model, batch = case.lively(), ragged(9)
    together = scores(model, batch)
    for rows in ([8, 7, 6, 5, 4, 3, 2, 1, 0], [4, 1], [3, 3, 0], *([row] for row in range(9))):
        close(scores(model, take(batch, rows)), together[rows])


def check_many_rows_score_as_few(case: Case) -> None:
    """Large batches use other operators than small ones (see nn/linear.py)."""
    model, batch = case.lively(), ragged(1500)
    rows = list(range(0, 1500, 97))
    close(scores(model, batch)[rows], scores(model, take(batch, rows)))


def check_an_empty_history_is_scored(case: Case) -> None:
    model = case.lively()
    batch = ragged(5, lengths=[0] * 5)
    actual = scores(model, batch)
    assert actual.isfinite().all()
    close(actual, torch.cat([scores(model, take(batch, [row])) for row in range(5)]))
    model.train()
    loss = model.loss(batch)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is None or (grad._values() if grad.is_sparse else grad).isfinite().all(), name


def check_what_is_explained_fits_the_histories(case: Case) -> None:
    model = case.lively(FEW)
    if not isinstance(model, Ranker):
        return
    sizes = [(5, 7), (3, 0), (1, 0), (1, 1)]
    for batch in [ragged(9, fields=FEW), *(shared(*size, fields=FEW) for size in sizes)]:
        with torch.no_grad():
            model_output = model.explain(batch)
        assert set(model_output) <= set(batch.histories)
        for name, weights in model_output.items():
            events = int(batch.histories[name].offsets[-1])
            assert tuple(weights.shape) == ((batch.size, events) if batch.shared else (events,)), name
            assert weights.isfinite().all()


def check_every_parameter_gets_a_gradient(case: Case) -> None:
    model = case.lively().train()
    model.loss(ragged(300)).backward()
    tables = {id(table) for table in model.embedding_parameters()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, f"{name} gets no gradient"
        assert grad.is_sparse == (id(parameter) in tables), f"{name}: tables and only tables have sparse gradients"
        dense = grad._values() if grad.is_sparse else grad
        assert dense.isfinite().all(), name
        assert dense.abs().sum() > 0, f"{name} gets a gradient of zero"


def check_every_input_is_read(case: Case) -> None:
    model, batch = case.lively(), ragged(40)
    before = scores(model, batch)
    generator = torch.Generator().manual_seed(99)
    for column in FIELDS.features:
        after = scores(model, with_feature(batch, column.name, values(column, 40, generator)))
        assert (after - before).abs().max() > 1e-4, f"feature {column.name} is not read"
    for history, columns in FIELDS.histories.items():
        for column in columns:
            events = int(batch.histories[history].offsets[-1])
            after = scores(model, with_history(batch, history, {column.name: values(column, events, generator)}))
            if model.reads_history:
                assert (after - before).abs().max() > 1e-4, f"column {column.name} of {history} is not read"
            else:
                assert torch.equal(after, before), f"{history} is read by a model with reads_history = False"


def check_every_event_counts_for_its_row_only(case: Case) -> None:
    model, batch = case.lively(), ragged(16)
    if not model.reads_history:
        return
    before = scores(model, batch)
    for history, columns in FIELDS.histories.items():
        offsets = batch.histories[history].offsets
        for end in ("first", "last"):
            moved = []
            for row in (offsets.diff() > 0).nonzero().squeeze(1).tolist():
                at = int(offsets[row]) if end == "first" else int(offsets[row + 1]) - 1
                order = list(range(int(offsets[-1])))
                order[at] = (at + len(order) // 2) % len(order)  # this event becomes another one
                changed = {c.name: pick(batch.histories[history].columns[c.name], order) for c in columns}
                change = scores(model, with_history(batch, history, changed)) - before
                moved.append(bool((change[row].abs() > 1e-6).any()))
                change[row] = 0
                assert change.abs().max() < 2e-5, f"an event of row {row} moves another row"
            assert sum(moved) > len(moved) / 2, f"the {end} event of {history} does not count"


def check_order_matters_as_declared(case: Case) -> None:
    model, batch = case.lively(), ragged(20)
    if not model.reads_history:
        assert not model.order_matters
        return
    before, turned = scores(model, batch), batch
    for history, events in batch.histories.items():
        order: list[int] = []
        for row in range(20):
            order += reversed(range(int(events.offsets[row]), int(events.offsets[row + 1])))
        turned = with_history(turned, history, {name: pick(column, order) for name, column in events.columns.items()})
    after = scores(model, turned)
    if model.order_matters:
        assert (after - before).abs().max() > 1e-4
    else:
        close(after, before)


def check_instance_tokens_and_knowledge_are_read(case: Case) -> None:
    """A history of tokens, and vectors of the user and the item, are columns like others to every model."""
    model, batch = case.lively(TOKENS), ragged(40, fields=TOKENS)
    before, generator = scores(model, batch), torch.Generator().manual_seed(99)
    assert before.isfinite().all()
    for column in TOKENS.features:
        if column.kind == "embedding":
            after = scores(model, with_feature(batch, column.name, values(column, 40, generator)))
            assert (after - before).abs().max() > 1e-4, f"{column.name} is not read"
    for column in TOKENS.histories["tokens"]:
        events = int(batch.histories["tokens"].offsets[-1])
        after = scores(model, with_history(batch, "tokens", {column.name: values(column, events, generator)}))
        assert ((after - before).abs().max() > 1e-4) == model.reads_history, column.name
    for candidates, events in ((5, 4), (2, 0)):
        one = shared(candidates, events, fields=TOKENS)
        close(scores(model, one), scores(model, repeated(one, TOKENS)))
    tokens = batch.histories["tokens"].columns["tokens.token"]
    assert isinstance(tokens, Tensor)
    kept = tokens.clone()
    model.train().loss(batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
    assert tokens.grad is None
    assert torch.equal(tokens, kept)


def check_same_seed_same_weights(case: Case) -> None:
    one, two, other = case.build(3), case.build(3), case.build(4)
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    if any(bool(parameter.any()) for parameter in one.parameters()):  # one that starts at zero has nothing to draw
        assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def check_the_first_predictions_are_the_base_rates(case: Case) -> None:
    """A new model that starts at rates predicts them on average, label by label; nothing but its biases moved."""
    model, batch = case.build(), ragged(300)
    assert isinstance(model, Ranker | Encoder)
    rates = torch.tensor([0.01, *[0.3] * len(model.targets)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.start_at_rates(rates.tolist())
    moved = sum(int((tensor != before[name]).sum()) for name, tensor in model.state_dict().items())
    assert 1 <= moved <= max(len(rates), len(model.output_biases()))
    with torch.no_grad():
        model.eval()
        actual_BK = model.logits(batch) if model.targets else model(batch).unsqueeze(1)
    # What random weights add to the bias is the same for no two seeds, and small.
    assert (actual_BK.sigmoid().mean(0).logit() - rates.logit()).abs().max() < 0.5


def check_a_loss_is_the_weighted_mean_over_rows(case: Case) -> None:
    """The loss of any weights is that of single rows, averaged by them: no label counts more or less than it weighs."""
    model, batch = case.lively(), ragged(9)
    assert isinstance(model, Ranker | Encoder)
    batch = replace(batch, task_labels={name: target.nan_to_num() for name, target in batch.task_labels.items()})

    def loss(weight_B: Tensor | None) -> Tensor:
        torch.manual_seed(0)  # what a model draws for a loss of its own
        with torch.no_grad():
            return model.loss(replace(batch, weight=weight_B))

    each = torch.stack([loss(weight) for weight in torch.eye(9)])
    weight_B = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 0.0, 1.0, 7.0, 0.25])
    close(loss(weight_B), (each * weight_B).sum() / weight_B.sum())
    close(loss(torch.full((9,), 4.0)), loss(None))
    assert loss(torch.zeros(9)).isfinite()
    assert each.std() > 1e-3, "weights are not read"


def check_the_correction_of_sampled_negatives_is_applied_once(case: Case) -> None:
    """Weights saved while a model is corrected score all rows: by one shift of every logit, whatever is built on what.
    Afterwards nothing of the model has moved. A model of several labels is refused.
    """
    model, batch = case.lively(), ragged(9)
    if model.targets or len(model.output_biases()) != 1:
        with pytest.raises(ConfigError, match=r"fit.negative_rate: 0.1"):
            negative_correction.check_negative_rate(model, FitConfig(negative_rate=0.1))
        return
    negative_correction.check_negative_rate(model, FitConfig(negative_rate=0.1))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(batch)
        vectors = model.encode(batch) if isinstance(model, Encoder) else None
    with tempfile.TemporaryDirectory() as folder:
        with negative_correction.correct_output_bias(model, 0.1):
            artifact.save(model, folder)
        again = artifact.load(folder)
    assert isinstance(again, Ranker | Encoder)
    again.eval()
    close(scores_of_label(again, batch), before + math.log(0.1))
    if isinstance(again, Encoder):
        assert torch.equal(scores(again, batch), vectors), "a token does not depend on the output bias"
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def scores_of_label(model: Ranker | Encoder, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch)


def check_saved_and_loaded(case: Case) -> None:
    model, batch = case.lively(), ragged(9)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        again = artifact.load(folder)
    assert isinstance(again, type(model))
    assert again.config == model.config
    assert again.fields == model.fields
    assert torch.equal(scores(again.eval(), batch), scores(model, batch))


def check_shared_batch_scores_as_ragged(case: Case) -> None:
    model = case.lively()
    for candidates, events in ((6, 5), (1, 4), (4, 1), (3, 0)):
        batch = shared(candidates, events)
        actual = scores(model, batch)
        assert len(actual) == candidates
        close(actual, scores(model, repeated(batch)))


def check_exported_program_agrees(case: Case) -> None:
    """The ONNX program of a model with its defaults, on few columns; of a variant the graph that such a program is made
    of, which takes a third of the time. The slow suite makes all programs, and with every column.
    """
    if not case.settings:
        program_agrees(case, FEW)
        return
    model = case.lively(FEW)
    graph = captured(model).module()
    for seed, (candidates, events) in enumerate(SHAPES):
        if candidates > 1 and events > 1:  # a graph may take 0 and 1 for sizes of their own, a program does not
            batch = shared(candidates, events, seed, FEW)
            with torch.no_grad():
                torch.testing.assert_close(graph(*flat(batch).values()), scores(model, batch), rtol=1e-4, atol=1e-4)


def program_agrees(case: Case, fields: Fields) -> None:
    """Check that the ONNX program of a model returns the same scores as the model, at all sizes."""
    model = case.lively(fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        trace(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    for seed, (candidates, events) in enumerate(SHAPES):
        batch = shared(candidates, events, seed, fields)
        feed = {name: tensor.numpy() for name, tensor in flat(batch).items() if name in taken}
        (actual,) = session.run(None, feed)
        expected = scores(model, batch)
        torch.testing.assert_close(
            torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4, msg=f"{candidates}, {events}"
        )


def check_misspelt_settings_are_refused(case: Case) -> None:
    for key in find(case.name).Config.model_fields:
        wrong = key[:-1] + key[-1] * 2
        with pytest.raises(ConfigError, match=re.escape(f"model.{wrong}: unknown key; did you mean {key!r}?")):
            build({"name": case.name, **case.settings, wrong: 1}, FIELDS)
    with pytest.raises(ConfigError, match="no_such_key: unknown key"):
        build({"name": case.name, "no_such_key": 1}, FIELDS)


def check_docstring_cites(case: Case) -> None:
    cls, card = find(case.name), describe(case.name)
    assert re.match(r"https?://(arxiv\.org|doi\.org|\S+)", card.link), "the second paragraph links to the paper"
    assert card.title
    assert citation(card).year, "the second paragraph: AUTHORS, VENUE YEAR. LINK (see models/core/citation.py)"
    assert "\nDepartures from the paper\n" in card.text
    assert re.search(r"^Shapes: \S", card.text, re.MULTILINE)
    assert card.reads_history == cls.reads_history
    assert card.kind.capitalize() in {base.__name__ for base in cls.__mro__[1:]}
    assert inspect.getdoc(cls)


def check_settings_are_described(case: Case) -> None:
    text = help_text(case.name)
    for key, setting in find(case.name).Config.model_fields.items():
        assert not setting.is_required(), f"{key} has no default"
        assert setting.description, f"{key} has no description"
        assert f"    {key}: " in text
        assert setting.description in text


def check_only_touched_rows_move(case: Case) -> None:
    model = case.lively().train()
    before = [table.detach().clone() for table in model.embedding_parameters()]
    optimizer = LazyAdam(model.embedding_parameters(), lr=0.1, l2=0.01)
    model.loss(ragged(6)).backward()
    touched = [table.grad._indices()[0].unique() for table in model.embedding_parameters()]
    optimizer.step()
    for table, old, rows in zip(model.embedding_parameters(), before, touched, strict=True):
        moved = (table != old).any(1).nonzero().squeeze(1)
        assert len(moved) > 0
        assert set(moved.tolist()) <= set(rows.tolist())


def check_learns(case: Case) -> None:
    model, batch = case.build(), ragged(64)
    tables = {id(table) for table in model.embedding_parameters()}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.03), torch.optim.AdamW(dense, lr=0.01)]

    def of_label() -> float:  # a loss may have parts that nothing in this batch tells
        with torch.no_grad():
            return float(bce_loss(model(batch), batch))

    losses = [of_label()]
    while losses[-1] >= 0.7 * losses[0]:
        assert len(losses) <= 8, losses
        for _ in range(5):
            model.loss(batch).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        losses.append(of_label())


def check_bfloat16_is_near(case: Case) -> None:
    model, batch = case.lively(), ragged(600)
    expected = scores(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        actual = scores(model, batch).float()
        loss = model.train().loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert (actual - expected).abs().mean() < 0.05 * expected.std() + 0.02


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_")
)


class Program(nn.Module):
    """A model as a function of flat tensors."""

    def __init__(self, model: Ranker | Encoder, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return model_output(self.model, unflat(dict(zip(self.names, tensors, strict=True)), self.model.fields))


def captured(model: Ranker | Encoder) -> torch.export.ExportedProgram:
    """Export the graph of a model, with dynamic numbers of candidates, events and values."""
    one = {f"f__{value.name}" for value in model.fields.features if value.side != "item"}
    fixed = one | {f"{name}__offsets" for name in one}
    # Lengths that all differ, so that no two free dimensions are taken for one; and none that is 1 by chance.
    examples = (flat(shared(5, 7, seed, model.fields, apart=2)) for seed in range(1, 50))
    example = next(e for e in examples if all(len(value) > 1 for name, value in e.items() if name not in fixed))
    shapes = tuple({} if name in fixed else {0: torch.export.Dim.DYNAMIC} for name in example)
    module = Program(model, list(example)).eval()
    with quiet(), torch.no_grad():
        return torch.export.export(module, tuple(example.values()), dynamic_shapes=(shapes,), strict=False)


def trace(model: Ranker | Encoder, path: Path) -> None:
    """Write the ONNX program of a model."""
    names = list(flat(shared(5, 7, fields=model.fields)))
    with quiet(), thrifty(), torch.no_grad():
        program = torch.onnx.export(captured(model), input_names=names, dynamo=True, verbose=False)
        assert program is not None
        program.save(str(path))


@contextlib.contextmanager
def thrifty() -> Iterator[None]:
    """Cache the operator registry of the exporter, which costs half a second per program, and pause the garbage
    collector, which costs a second of three.
    """
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(_registry))
            yield
    finally:
        gc.enable()


_registry = functools.cache(ONNXRegistry.from_torchlib)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
