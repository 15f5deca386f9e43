from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from longrec.errors import BundleError
from longrec.exporting.bundle import DIGEST, MANIFEST, Bundle, format_digest, read_manifest
from longrec.exporting.write import export
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Schema
from longrec.serve.service import replay
from longrec.store.segment import Segment


@pytest.fixture
def copy(full: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full.bundle, tmp_path / "bundle"))


def refuse(folder: Path, *phrases: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_a_bundle_describes_itself(full: Any) -> None:
    bundle = Bundle.open(full.bundle)
    manifest = bundle.manifest
    assert (manifest.format, manifest.model, manifest.kind) == ("longrec-bundle-3", "din", "ranker")
    assert manifest.counts == {"users": 9, "items": 40, "events": 400, "features": 13, "histories": 2}
    assert manifest.source == {"run": "shop"}
    assert manifest.parity["golden"]["requests"] == 12
    assert max(manifest.parity["shapes"].values()) <= 1e-5
    assert manifest.parity["golden"]["worst"] <= 1e-5
    assert [entry.name for entry in manifest.inputs][:4] == [
        "f.user_id",
        "f.age",
        "f.hobbies.values",
        "f.hobbies.offsets",
    ]
    assert bundle.golden == full.golden


def test_a_manifest_is_shown_on_one_line(full: Any) -> None:
    manifest = Bundle.open(full.bundle).manifest
    assert re.fullmatch(
        rf"Manifest of a bundle: ranker {manifest.model}, [\d,]+ users, [\d,]+ items, [\d,]+ events; "
        rf"{len(manifest.files)} files of \d+\.\d MB",
        repr(manifest),
    )


def test_a_flipped_byte_in_any_file_is_detected_and_the_file_named(copy: Path) -> None:
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    kinds = {path.suffix for path in files}
    assert kinds == {".json", ".onnx", ".npy", ".parquet", ".sha256"}
    for path in files:
        content = path.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            # a wrong digest and a wrong manifest look the same: the manifest is named for both
            refuse(copy, MANIFEST if path.name == DIGEST else path.relative_to(copy).as_posix())
        path.write_bytes(content)
    assert Bundle.open(copy).golden


def test_missing_extra_cut_and_linked_files_are_refused(copy: Path) -> None:
    program = copy / "program.onnx"
    content = program.read_bytes()
    program.write_bytes(content[:-1])
    refuse(copy, "program.onnx", f"{len(content) - 1} bytes; expected {len(content)} bytes")
    program.unlink()
    refuse(copy, "program.onnx: no such file")
    (copy.parent / "elsewhere").write_bytes(content)
    program.symlink_to(copy.parent / "elsewhere")
    refuse(copy, "program.onnx: not a regular file")
    program.unlink()
    program.write_bytes(content)
    (copy / "users" / "notes.txt").write_text("x")
    refuse(copy, "users/notes.txt: a file the manifest does not name")


def test_what_is_no_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "no such folder", "longrec export")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no file manifest.json")
    (copy / DIGEST).unlink()
    refuse(copy, "no file manifest.sha256")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "longrec-bundle-9"}', "format 'longrec-bundle-9'; expected longrec-bundle-3"),
        (b"[]", "not a manifest"),
        (b'{"format": "longrec-bundle-1"}', "not a manifest"),
        (b'{"format": "longrec-bundle-3"}', "not a manifest"),
    ],
)
def test_another_format_is_refused(copy: Path, content: bytes, message: str) -> None:
    (copy / MANIFEST).write_bytes(content)
    (copy / DIGEST).write_bytes(format_digest(content))
    refuse(copy, message)


@pytest.mark.parametrize("number", [1, 2])
def test_a_bundle_of_a_former_format_opens(copy: Path, full: Any, number: int) -> None:
    manifest = msgspec.json.decode((copy / MANIFEST).read_bytes())
    inputs = manifest.pop("programs")["score"]["inputs"]
    content = msgspec.json.encode({**manifest, "format": f"longrec-bundle-{number}", "inputs": inputs})
    (copy / MANIFEST).write_bytes(content)
    (copy / DIGEST).write_bytes(format_digest(content))
    assert Bundle.open(copy).manifest.programs == read_manifest(full.bundle).programs
    assert all(np.allclose(one.scores, own) for one, own in zip(full.golden, replay(copy, full.golden)))


def test_a_manifest_cannot_reach_outside_the_bundle(copy: Path) -> None:
    (copy.parent / "secret").write_bytes(b"x")
    manifest = read_manifest(copy)
    facts = type(next(iter(manifest.files.values())))(1, hashlib.sha256(b"x").hexdigest())
    content = msgspec.json.encode(msgspec.structs.replace(manifest, files={**manifest.files, "../secret": facts}))
    (copy / MANIFEST).write_bytes(content)
    (copy / DIGEST).write_bytes(format_digest(content))
    refuse(copy, "no such file")


def test_the_digest_is_what_sha256sum_checks(full: Any) -> None:
    if shutil.which("sha256sum") is None:
        assert (full.bundle / DIGEST).read_text().endswith("  manifest.json\n")
        return
    subprocess.run(["sha256sum", "-c", DIGEST], cwd=full.bundle, check=True, capture_output=True)


def test_history_holds_just_what_histories_read(full: Any, steps: Any, prejoined: Any) -> None:
    segment = Segment.open(full.bundle / "history")
    assert set(segment.columns) == {"item", "device", "rating", "dwell", "known.dwell", "where.liked"}
    assert np.array_equal(segment.times, full.segment.times)
    for shop in (steps, prejoined):
        assert not (shop.bundle / "history").exists()
        assert Bundle.open(shop.bundle).store is None
    assert not any(entry.name.startswith("h.") for entry in Bundle.open(steps.bundle).manifest.inputs)


def test_export_never_overwrites_by_default(steps: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(BundleError, match="already exists"):
            export(steps.model, steps.log, out, steps.golden, replay, overwrite=overwrite)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(BundleError, match="already exists"):
        export(steps.model, steps.log, steps.bundle, steps.golden, replay)


def test_the_schema_of_the_run_counts_not_that_of_the_log(full: Any, steps: Any, tmp_path: Path) -> None:
    def change_schema(shop: Any, change: Any) -> FittedSchema:
        content = shop.fitted.schema.model_dump(exclude_unset=True)
        change(content)
        return FittedSchema(Schema.model_validate(content), shop.fitted.encoders)

    wider = change_schema(steps, lambda content: content["features"]["film"].update(dim=32))
    with pytest.raises(BundleError, match="schema: its fields are not those of the model"):
        export(steps.model, steps.log, tmp_path / "out", steps.golden, replay, fitted=wider)
    candidate = change_schema(steps, lambda content: content["features"]["film"].update(side="context"))
    model = type(steps.model)(steps.model.config, candidate.fields())
    with pytest.raises(BundleError, match="feature 'film': it reads the item with side: context"):
        export(model, steps.log, tmp_path / "out", steps.golden, replay, fitted=candidate)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing_behind(steps: Any, tmp_path: Path) -> None:
    def replay_with_errors(folder: Path, golden: Any) -> list[np.ndarray]:
        return [np.array(one.scores) + (2e-5 if number == 3 else 0.0) for number, one in enumerate(golden)]

    with pytest.raises(BundleError, match="golden request 3: the exported program differs from the model by 2e-05"):
        export(steps.model, steps.log, tmp_path / "out", steps.golden, replay_with_errors)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_bundle(steps: Any, tmp_path: Path) -> None:
    out = Path(shutil.copytree(steps.bundle, tmp_path / "out"))
    (out / "program.onnx").unlink()
    manifest = export(steps.model, steps.log, out, steps.golden[:1], replay, name="nightly", overwrite=True)
    assert Bundle.open(out).manifest == manifest
    assert manifest.model == "nightly"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
