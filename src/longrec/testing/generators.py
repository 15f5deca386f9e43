"""Checks of generators: their steps, their search, and the programs of both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from longrec.features.batch import Batch, Layout
from longrec.models.core.generator import FLOOR, Generator
from longrec.onnx_import import import_onnxruntime
from longrec.testing.batches import pick, ragged, shared
from longrec.testing.case import Case
from longrec.testing.expect import expect, expect_close
from longrec.testing.programs import flatten, silence_exporter, unflatten
from longrec.testing.retrievers import lively
from longrec.testing.target_batches import catalog, with_targets

_SHAPES = [(3, 9), (1, 4), (6, 1), (2, 0)]
"""(prefixes, events) at which the program of a step must agree."""
_ENOUGH = 1_000
"""A beam that is wider than the paths of the suite's catalog."""


def _lively_generator(case: Case) -> Generator:
    model = lively(case)
    assert isinstance(model, Generator)
    return model


def _change_token(model: Generator, batch: Batch, step: int) -> Batch:
    """Return the batch with another token of every target at a step."""
    field = model.path[step]
    column = batch.candidates[field.name]
    assert isinstance(column, Tensor)
    return replace(batch, candidates={**batch.candidates, field.name: (column + 1) % field.rows})


def check_a_step_reads_earlier_tokens_alone(case: Case) -> None:
    """Another token of the target changes the logits of later steps, and none of its own step or before."""
    model = _lively_generator(case)
    batch = with_targets(model.sampling, 9, fields=case.fields, per_position=False)
    with torch.no_grad():
        before = model.target_logits(batch)
        for step in range(len(model.path)):
            after = model.target_logits(_change_token(model, batch, step))
            for other, (one, two) in enumerate(zip(before, after, strict=True)):
                moved = float((one - two).abs().max())
                expect(other > step or moved < 1e-5, f"token {step} moves the logits of step {other} by {moved:.2g}")
                if other == step + 1:
                    expect(moved > 1e-4, f"token {step} does not move the logits of the next step")


def check_scores_are_those_of_teacher_forcing(case: Case) -> None:
    """Generated paths have the log-probabilities that training gives their tokens, in a batch of any layout."""
    model = _lively_generator(case)
    batch = with_targets(model.sampling, 9, fields=case.fields, per_position=False)
    assert batch.targets is not None
    paths_TS = model.target_tokens(batch)
    with torch.no_grad():
        expected = model.log_probabilities(batch)
        memory = model.encode(batch)
        for step in range(len(model.path)):
            actual = model.step(memory, paths_TS[:, None, :step])[:, 0].float().log_softmax(1)
            own = actual.gather(1, paths_TS[:, step : step + 1]).squeeze(1)
            expect_close(own, expected[:, step], f"step {step} of one prefix scores otherwise than in training")
            every = model.step(memory, paths_TS[:, :step]).float().log_softmax(2)
            expect_close(
                every.diagonal().t(), actual, f"step {step} of shared prefixes scores otherwise than of own ones"
            )


def check_a_packed_memory_is_the_memory(case: Case) -> None:
    """The tensors that go from one exported program to the others give every step the scores of the memory itself.

    Each has one row, or the same number of rows for each event, whatever the request.
    """
    model, rows = _lively_generator(case), dict[str, list[int]]()
    generator = torch.Generator().manual_seed(3)
    for events in (6, 3, 0):
        request = replace(shared(4, events, fields=case.fields), layout=Layout.shared(1), candidates={})
        with torch.no_grad():
            memory = model.encode(request)
            packed = model.pack_memory(memory)
            unpacked = model.unpack_memory({name: x.clone() for name, x in packed.items()})
            for name, x in packed.items():
                expect(x.dim() == 2 and x.dtype == torch.float32, f"{name} of a memory is {x.dtype} {tuple(x.shape)}")
                rows.setdefault(name, []).append(len(x))
            for step in range(len(model.path)):
                tokens = [torch.randint(0, field.rows, (5,), generator=generator) for field in model.path[:step]]
                prefix = torch.stack(tokens, 1) if tokens else torch.zeros(1, 0, dtype=torch.int64)
                actual, expected = (model.score_tokens(one, prefix) for one in (unpacked, memory))
                expect_close(actual, expected, f"step {step} scores otherwise with an unpacked memory")
    for name, counts in rows.items():
        grows = counts == [6 * counts[1] // 3, counts[1], 0] and counts[1] > 0
        expect(counts == [1, 1, 1] or grows, f"{name} of a memory has {counts} rows for 6, 3 and 0 events")


def check_a_wide_beam_is_exact(case: Case) -> None:
    """A beam as wide as the catalog returns each servable item once, with its exact score, the best first."""
    model, items = _lively_generator(case), catalog(case.fields)
    trie = model.build_trie(items)
    batch = ragged(9, fields=case.fields)
    model.config = model.config.model_copy(update={"search": "exact"})
    with torch.no_grad():
        generated = model.generate(batch, trie, len(trie.items), _ENOUGH)
        exact = model.score_catalog(batch, items)
    listed, scores = torch.from_numpy(generated.items), torch.from_numpy(generated.scores)
    expected = torch.from_numpy(trie.items).sort().values
    for row in listed.sort(1).values:
        expect(torch.equal(row, expected), "a wide beam does not return each servable item once")
    expect(bool((scores.diff(dim=1) <= 0).all()), "generated items are not in the order of their scores")
    expect_close(scores, exact.gather(1, listed), "a generated item has another score than in exact scoring")
    others = torch.ones(exact.shape[1], dtype=torch.bool).index_fill(0, expected, False)
    expect(bool((exact[:, others] == FLOOR).all()), "an item without codes has a score above the floor")


def check_a_narrow_beam_is_a_list_of_the_catalog(case: Case) -> None:
    """A beam of any width returns servable items, none twice, at their exact scores. Others have the floor."""
    model, items = _lively_generator(case), catalog(case.fields)
    some = {name: pick(column, range(2, 40)) for name, column in items.items()}
    batch = ragged(9, fields=case.fields)
    trie = model.build_trie(some)
    model.config = model.config.model_copy(update={"search": "exact"})
    with torch.no_grad():
        exact = model.score_catalog(batch, some)
        for width in (1, 2, 5):
            generated = model.generate(batch, trie, 8, width)
            model.config = model.config.model_copy(update={"search": "beam", "beam_width": width})
            searched = model.score_catalog(batch, some)
            reached = searched > FLOOR
            expect_close(searched[reached], exact[reached], f"a beam of {width} changes the score of a path")
            expect(bool(reached.any(1).all()), f"a beam of {width} reaches no item")
            for row, listed in enumerate(generated.items):
                listed = listed[listed >= 0]
                expect(len(set(listed.tolist())) == len(listed) > 0, f"a beam of {width} returns an item twice")
                expect(bool(reached[row][listed].all()), f"a beam of {width} lists an item that it does not score")


class _Steps(nn.Module):
    """The steps of a generator for one request, as a function of flat tensors and a prefix."""

    def __init__(self, model: Generator, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, prefix: Tensor, *tensors: Tensor) -> Tensor:
        """Return the logits after each prefix, ``[W, V]``."""
        batch = unflatten(dict(zip(self.names, tensors, strict=True)), self.model.fields)
        request = replace(batch, layout=Layout.shared(1), candidates={})
        return self.model.step(self.model.encode(request), prefix)[0]


def _flatten_request(case: Case, events: int, seed: int = 0) -> Mapping[str, Tensor]:
    return flatten(shared(4, events, seed, case.fields, apart=2))


def check_programs_of_steps_agree(case: Case) -> None:
    """The program of a step returns the logits of the model, for any number of prefixes and of events.

    Of a variant with self-attention it is the graph that such a program is made of, which takes a third of the time.
    Other variants are not traced.
    """
    if case.variant and not case.settings.get("self_attention"):
        return
    model = _lively_generator(case)
    if model.served() is not model:  # whose programs they are
        return
    example = _flatten_request(case, 7)
    module = _Steps(model, list(example)).eval()
    fields = case.fields.features
    fixed = {f"f__{f.name}" for f in fields if f.side == "item"} | {f"f__{f.name}__offsets" for f in fields}
    dynamic = {0: torch.export.Dim.DYNAMIC}
    shapes = tuple(dynamic if len(x) > 1 and name not in fixed else {} for name, x in example.items())
    step = len(model.path) - 1
    inputs = torch.zeros(5, step, dtype=torch.int64), *example.values()
    with silence_exporter(), torch.no_grad():
        graph = torch.export.export(module, inputs, dynamic_shapes=(dynamic, shapes), strict=False)
        run = graph.module() if case.variant else _open_program(graph, ["prefix", *example])
        for seed, (prefixes, events) in enumerate([(3, 9), (6, 2)] if case.variant else _SHAPES):
            generator = torch.Generator().manual_seed(seed)
            tokens = [torch.randint(0, f.rows, (prefixes,), generator=generator) for f in model.path[:step]]
            inputs = torch.stack(tokens, 1), *_flatten_request(case, events, seed).values()
            where = f"the program of step {step}, {prefixes} prefixes, {events} events, differs from the model"
            expect_close(run(*inputs), module(*inputs), where, atol=1e-4)


def _open_program(graph: torch.export.ExportedProgram, names: Sequence[str]) -> Callable[..., Tensor]:
    """Return the ONNX program of a graph as a function of tensors."""
    onnxruntime = import_onnxruntime()
    program = torch.onnx.export(graph, input_names=list(names), dynamo=True, verbose=False)
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.onnx"
        program.save(str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    read = {entry.name for entry in session.get_inputs()}

    def run(*tensors: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, tensors, strict=True) if name in read}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_a_step_reads_earlier_tokens_alone,
    check_scores_are_those_of_teacher_forcing,
    check_a_packed_memory_is_the_memory,
    check_a_wide_beam_is_exact,
    check_a_narrow_beam_is_a_list_of_the_catalog,
    check_programs_of_steps_agree,
)
"""Checks of every generator."""
