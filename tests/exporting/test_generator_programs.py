"""Programs of generators as functions of flat tensors, without tracing: what they read and return."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.exporting.generator_programs import MemoryProgram, StepProgram, describe_generator
from longrec.exporting.inputs import list_inputs
from longrec.exporting.program import build_retrieval_batch
from longrec.exporting.programs import build_programs
from longrec.models.unirec import UniRec
from longrec.testing.batches import PATHS

SETTINGS: dict[str, dict[str, Any]] = {
    "of no request": {"static": False},
    "corrected": {"attributes": ["category"], "tasks": ["user"], "correction": 0.5, "task_dropout": 0.2},
    "self-attention": {"attributes": ["category"], "self_attention": True, "head": "linear", "search": "exact"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_steps_score_as_the_model(name: str) -> None:
    torch.manual_seed(0)
    model = UniRec(UniRec.Config(embedding_dim=8, layers=1, hidden=8, **SETTINGS[name]), PATHS).eval()
    programs = build_programs(model, list_inputs(PATHS, histories=True))
    path = [field.name for field in model.path]
    assert list(programs) == ["encode", *(f"step.{number + 1}" for number in range(len(path)))]
    encode = programs["encode"]
    assert isinstance(encode, MemoryProgram)
    for events in (7, 1, 0):
        tensors = encode.make_random_tensors(0, events, 5)
        batch, _ = build_retrieval_batch(encode.inputs, [torch.from_numpy(tensors[one.name]) for one in encode.inputs])
        sent = encode.make_memory(events, 5)
        with torch.no_grad():
            memory = model.encode(batch)
            for step in range(len(path)):
                program = programs[f"step.{step + 1}"]
                assert isinstance(program, StepProgram)
                assert [one.name for one in program.inputs if one.group == "prefix"] == [f"t.{n}" for n in path[:step]]
                tensors_of_step = {**program.make_random_tensors(4, events, 5), **sent}
                scores: Tensor = program(*(torch.from_numpy(tensors_of_step[one.name]) for one in program.inputs))
                tokens = [tensors_of_step[f"t.{name}"] for name in path[:step]]
                prefix = torch.from_numpy(np.stack(tokens, 1)).long() if step else torch.zeros(1, 0, dtype=torch.int64)
                torch.testing.assert_close(scores, model.score_tokens(memory, prefix)[0], atol=1e-6, rtol=1e-6)
                assert scores.shape == (4 if step else 1, model.sizes[step])
    facts = describe_generator(model)
    assert (facts.path, facts.beam_width) == (path, None if name == "self-attention" else 256)


def test_what_grows_with_the_history_is_of_the_memory() -> None:
    model = UniRec(UniRec.Config(embedding_dim=8, layers=2, code_events="append"), PATHS).eval()
    program = build_programs(model, list_inputs(PATHS, histories=True))["step.2"]
    groups = {entry.name: (entry.group, entry.shape) for entry in program.inputs}
    assert groups["m.keys"] == ("memory", [-1, 32])
    assert groups["m.start"] == ("user", [1, 8])
    assert groups["t.code_1"] == ("prefix", [-1])
    assert len(program.make_random_tensors(3, 5, 0)["m.keys"]) == 10  # an event is two positions
