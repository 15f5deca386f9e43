"""Bundles of several programs: each weight is in one file once, and programs read it from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import retrievers
import shop

from longrec.exporting.bundle import INDEX, PROGRAM, WEIGHTS, Bundle
from longrec.exporting.catalog import build_catalog_tensors
from longrec.exporting.inputs import make_random_tensors
from longrec.exporting.program import trace_module
from longrec.exporting.programs import build_programs
from longrec.exporting.runtime import open_programs
from longrec.exporting.weights import write_programs


@pytest.fixture(scope="module")
def vectors() -> retrievers.RetrievalShop:
    return retrievers.vectors()


def list_external(path: Path) -> dict[tuple[int, int], str]:
    """Return the weights of a program that are in another file, by offset and length."""
    placed = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {one.key: one.value for one in tensor.external_data}
            assert entry["location"] == WEIGHTS
            placed[int(entry["offset"]), int(entry["length"])] = tensor.name
    return placed


def test_programs_share_one_file_of_weights(vectors: retrievers.RetrievalShop) -> None:
    names = {path.name for path in vectors.bundle.iterdir()}
    assert {"users.onnx", "items.onnx", WEIGHTS, INDEX} <= names
    assert PROGRAM not in names
    users, items = (list_external(vectors.bundle / f"{name}.onnx") for name in ("users", "items"))
    table = vectors.model.tables["item_id"].weight  # type: ignore[index,union-attr]
    size = table.numel() * 4
    shared = [span for span in users if span in items]
    assert [length for _, length in shared] == [size]
    content = (vectors.bundle / WEIGHTS).read_bytes()
    assert content.count(table.detach().numpy().tobytes()) == 1
    assert all(offset % 4096 == 0 for offset, _ in {**users, **items})
    assert len(content) < sum(length + 4096 for _, length in {**users, **items})


def test_the_manifest_describes_every_program(vectors: retrievers.RetrievalShop) -> None:
    bundle = Bundle.open(vectors.bundle)
    manifest = bundle.manifest
    assert (manifest.kind, list(manifest.programs)) == ("retriever", ["users", "items"])
    users, items = manifest.programs["users"], manifest.programs["items"]
    assert {entry.group for entry in users.inputs} == {"user", "h.seen", "h.liked"}
    assert {entry.group for entry in items.inputs} == {"item"}
    assert [(entry.name, entry.datatype, entry.shape) for entry in users.outputs] == [("vectors", "FP32", [1, 64])]
    assert [entry.shape for entry in items.outputs] == [[-1, 64]]
    assert manifest.parity["shapes"].keys() >= {"users 7x100", "items 7x100", "users 1x0"}
    assert [entry.name for entry in manifest.inputs] == [e.name for e in (*users.inputs, *items.inputs)]


def test_the_index_holds_the_vectors_of_all_items(vectors: retrievers.RetrievalShop) -> None:
    bundle = Bundle.open(vectors.bundle)
    programs = open_programs(bundle.path, bundle.manifest.programs)
    index = np.load(bundle.path / INDEX)
    assert index.shape == (len(bundle.items) - 1, 64)
    one = build_catalog_tensors(bundle.fitted, bundle.items, 7, 9)
    assert np.allclose(programs["items"].run(one), index[6:8], atol=1e-6)


def test_one_program_keeps_its_weights_inside(tmp_path: Path) -> None:
    own = shop.steps()
    modules = build_programs(own.model, Bundle.open(own.bundle).manifest.inputs)
    files = write_programs({name: trace_module(module) for name, module in modules.items()}, tmp_path)
    assert files == {"score": PROGRAM}
    assert [path.name for path in tmp_path.iterdir()] == [PROGRAM]


def test_shared_and_separate_weights_compute_the_same(vectors: retrievers.RetrievalShop, tmp_path: Path) -> None:
    manifest = Bundle.open(vectors.bundle).manifest
    shared = open_programs(vectors.bundle, manifest.programs)
    modules = build_programs(vectors.model, manifest.inputs)
    for name, module in modules.items():
        (tmp_path / name).mkdir()
        write_programs({name: trace_module(module)}, tmp_path / name)
        facts = {name: type(manifest.programs[name])(PROGRAM, manifest.programs[name].inputs, [])}
        alone = open_programs(tmp_path / name, facts)[name]
        tensors: dict[str, Any] = make_random_tensors(module.inputs, 5, 3, 0)
        assert np.array_equal(alone.run(tensors), shared[name].run(tensors))
