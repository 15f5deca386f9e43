"""Tests of servers whose bundles are changed, truncated, removed and replaced while they answer."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import retrievers
import shop
import token_shop
from in_process import InProcess
from test_reload import change_digest, link, send_reload, wait_for
from test_server import start_server

from longrec.errors import BundleError, RequestError, ResourceError
from longrec.exporting import private_copies
from longrec.exporting.bundle import Bundle
from longrec.exporting.private_copies import COPIES
from longrec.serve.app import App
from longrec.serve.client import client
from longrec.serve.live_catalog import change_items, open_catalog
from longrec.serve.server import run_server
from longrec.serve.service import Service
from longrec.serve.settings import Settings

PRIVATE = Settings(private=True)


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the private copies, of this test alone."""
    monkeypatch.setenv(COPIES, str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def bundle(full: shop.Shop, tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(full.bundle, tmp_path / "bundle"))


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def truncate(folder: Path) -> None:
    for path in list_files(folder):
        os.truncate(path, 0)


def overwrite(folder: Path) -> None:
    for path in list_files(folder):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)


def test_a_server_answers_as_before_whatever_happens_to_the_folder(
    bundle: Path, full: shop.Shop, tmp_path: Path, copies: Path
) -> None:
    retriever = Path(shutil.copytree(retrievers.vectors().bundle, tmp_path / "retriever"))
    requests = [dict(one.request) for one in full.golden]
    settings = Settings(recall=str(retriever))
    with run_server(bundle, settings=settings) as url, client(url) as served:
        before = answer_all(served, requests)
        for damage in (overwrite, truncate, shutil.rmtree):
            for folder in (bundle, retriever):
                damage(folder)
            assert answer_all(served, requests) == before
        assert len(list(copies.iterdir())) == 2
    assert not list(copies.iterdir())


def answer_all(served: Any, requests: list[dict[str, Any]]) -> list[Any]:
    """Answer requests on both routes, with keys and scores."""
    ranked = [served.rank(**request) for request in requests]
    shown = [
        served.recommend(request["user"], 5, request["at"], request.get("context"), allow_unknown=True)
        for request in requests
    ]
    return [[(item[0], item[1]) for item in one] for one in [*ranked, *shown]]


@pytest.mark.parametrize("build_shop", [shop.full, token_shop.shop], ids=["histories", "tokens"])
def test_all_that_is_read_late_is_read_from_the_copy(build_shop: Callable[[], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(build_shop().bundle, tmp_path / "shop"))
    with contextlib.closing(Service(folder, PRIVATE)) as service:
        truncate(folder)
        assert service.check() < 1e-4  # of the service
        with contextlib.closing(Service(service.bundle, Settings(pristine=True))) as again:  # of all files once more
            assert again.check() < 1e-4
        catalog = service.served.catalog
        assert (catalog._columns is None) == (build_shop is not shop.full)
        locations = [service.bundle.resolve_store(one) for one in service.bundle.manifest.tokens.values()]
        assert all(Path(one).is_relative_to(service.bundle.files) for one in locations)
        assert len(locations) == (build_shop is not shop.full)


WITHOUT_A_COPY = """
import os, sys
from pathlib import Path
from longrec.serve.service import Service
service = Service(sys.argv[1])
service.check()
for path in Path(sys.argv[1], "history").rglob("*"):
    if path.is_file():
        os.truncate(path, 0)
service.check()
"""


def test_a_bundle_without_a_copy_is_at_risk(bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_COPY, str(bundle)], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGBUS


def test_services_of_one_bundle_share_a_copy_that_the_last_one_removes(bundle: Path, copies: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: Bundle.open(bundle, private=True), range(4)))
    (copy,) = copies.iterdir()
    assert {one.files for one in opened} == {copy} == {copies / opened[0].digest}
    assert {one.path for one in opened} == {bundle}
    for one in opened:
        assert copy.exists()
        one.close()
    opened[0].close()  # once more, without an effect
    assert not list(copies.iterdir())


def test_what_a_killed_server_leaves_is_removed_by_the_next_start(bundle: Path, steps: Any, copies: Path) -> None:
    process, _, _ = start_server(steps.bundle)
    process.kill()
    process.communicate(timeout=20)
    (left,) = copies.iterdir()
    half, removed = (copies / f"{letter * 64}{end}" for letter, end in (("a", ".partial"), ("b", ".0a1b.removed")))
    for folder in (half, removed, copies / "own"):
        folder.mkdir()
        (folder / "file").touch()
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        assert sorted(copies.iterdir()) == sorted([opened.files, copies / "own"])
    assert left != opened.files


def test_a_copy_that_a_killed_process_has_left_is_used_or_finished(bundle: Path, copies: Path) -> None:
    first = Bundle.open(bundle, private=True)
    kept = Path(shutil.copytree(first.files, copies.with_name("kept")))
    first.close()
    kept.rename(first.files)
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        assert opened.golden
    half = first.files.with_name(f"{first.digest}.partial")
    (half / "users").mkdir(parents=True)
    (half / "users" / "half").touch()
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        assert {path.name for path in list_files(opened.files)} == {path.name for path in list_files(bundle)}
        assert list(copies.iterdir()) == [opened.files]


def test_a_copy_that_was_altered_is_refused_and_replaced_when_nobody_uses_it(bundle: Path) -> None:
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        program = opened.files / "program.onnx"
        assert program.stat().st_mode & 0o777 == 0o400
        program.chmod(0o600)
        program.write_bytes(b"x" * program.stat().st_size)
        with pytest.raises(BundleError, match="its SHA-256") as caught:
            Bundle.open(bundle, private=True)
        assert str(program) in caught.value.where
        assert "stop the servers" in caught.value.do
        shutil.copytree(opened.files, bundle.with_name("left"))
    bundle.with_name("left").rename(opened.files)  # nobody uses it
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        assert (opened.files / "program.onnx").read_bytes() == (bundle / "program.onnx").read_bytes()


def test_a_disk_without_space_is_reported(bundle: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000))
    with pytest.raises(ResourceError, match="private copy of .*bundle of .*at most the 1 kB of disk space") as caught:
        Bundle.open(bundle, private=True)
    assert caught.value.where == str(copies)
    assert "--no-copy" in caught.value.do
    assert COPIES in caught.value.do
    assert not list(copies.iterdir())


def fail_with(number: int) -> Callable[..., int]:
    def copy_file_range(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    return copy_file_range


def test_a_disk_that_fills_up_meanwhile_is_reported(
    bundle: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.ENOSPC))
    with pytest.raises(ResourceError, match="no space left"):
        Bundle.open(bundle, private=True)
    assert not list(copies.iterdir())


def test_files_are_copied_between_file_systems(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "copy_file_range", fail_with(errno.EXDEV))
    with contextlib.closing(Bundle.open(bundle, private=True)) as opened:
        assert (opened.files / "program.onnx").read_bytes() == (bundle / "program.onnx").read_bytes()


@pytest.mark.parametrize("change", [overwrite, truncate, change_digest], ids=lambda change: change.__name__)
def test_a_bundle_that_changes_while_it_is_copied_is_refused(
    change: Callable[[Path], None], bundle: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, names = private_copies._copy_file, list[str]()

    def copy_and_change(source: Path, target: Path) -> None:
        if len(names) == 1:
            change(bundle)
        names.append(source.name)
        original(source, target)

    monkeypatch.setattr(private_copies, "_copy_file", copy_and_change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle, private=True)
    assert caught.value.where.startswith(str(bundle))
    assert not list(copies.iterdir())


def test_a_folder_that_others_may_write_to_is_refused(bundle: Path, copies: Path) -> None:
    copies.mkdir()
    copies.chmod(0o777)
    with pytest.raises(ResourceError, match="not a folder of this user alone"):
        Bundle.open(bundle, private=True)


def test_a_link_to_another_folder_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COPIES)
    monkeypatch.setattr(tempfile, "tempdir", str(bundle.parent))
    (bundle.parent / "own").mkdir(mode=0o700)
    (bundle.parent / f"longrec-copies-{os.getuid()}").symlink_to(bundle.parent / "own")
    with pytest.raises(ResourceError, match="not a folder of this user alone"):
        Bundle.open(bundle, private=True)


def test_a_reload_releases_the_former_copy(bundle: Path, copies: Path, full: shop.Shop) -> None:
    second, path = Path(shutil.copytree(bundle, bundle.with_name("second"))), bundle.with_name("current")
    change_digest(second)
    link(path, bundle)
    app = App(Service(path, PRIVATE))
    with InProcess(app) as http:
        assert http.post("/reload").json()["reloaded"] is False
        before = http.post("/rank", full.golden[0].request).json()["items"]
        (former,) = copies.iterdir()
        shutil.rmtree(bundle)
        assert http.post("/reload").status == 422
        link(path, second)
        assert http.post("/reload").json()["reloaded"] is True
        (current,) = copies.iterdir()
        assert current != former
        truncate(second)
        assert http.post("/rank", full.golden[0].request).json()["items"] == before
    app.close()
    assert not list(copies.iterdir())


def test_workers_share_a_copy_and_release_it_at_a_reload(steps: Any, tmp_path: Path, copies: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(steps.bundle, tmp_path / name)
    change_digest(tmp_path / "second")
    path, second = tmp_path / "current", Bundle.open(tmp_path / "second").digest
    link(path, tmp_path / "first")
    with run_server(path, workers=2) as url:
        wait_for(url, orjson.loads((path / "manifest.json").read_bytes())["created"], 4)
        assert len(list(copies.iterdir())) == 1
        link(path, tmp_path / "second")
        send_reload(url)
        wait_for(url, "2020-02-02T00:00:00Z", 8)
        end = time.monotonic() + 60  # a worker may still be starting
        while [one.name for one in copies.iterdir()] != [second]:
            assert time.monotonic() < end, list(copies.iterdir())
            time.sleep(0.05)
    assert not list(copies.iterdir())


def test_a_server_without_copies_makes_none(steps: Any, copies: Path) -> None:
    with run_server(steps.bundle, private=False) as url, client(url) as served:
        assert served.rank(**steps.golden[0].request)
        assert not copies.exists()


def test_changes_of_the_bundle_that_followed_have_no_effect(bundle: Path, copies: Path) -> None:
    with contextlib.closing(Service(bundle, PRIVATE)) as service:
        service.change_items(b'{"items": [{"item_id": "i1", "withdrawn": true}]}')
        catalog = service.served.catalog
        shutil.rmtree(catalog.folder)
        change_digest(bundle)
        changes = [{"item_id": "i2", "withdrawn": True}]
        change_items([open_catalog(bundle)], changes)
        assert catalog.refresh()
        withdrawn = catalog.withdrawn
        assert withdrawn is not None
        assert withdrawn.sum() == 1
        assert withdrawn[list(catalog.keys).index("i1")]
        with pytest.raises(RequestError, match="another bundle, which has changes of its own"):
            service.change_items(orjson.dumps({"items": changes}))
        shutil.rmtree(bundle)
        assert not catalog.refresh()
