"""The bundle of a source computes the same tokens, and copies of stores are consistent."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_shop
import torch

from longrec import commands
from longrec.errors import BundleError, RunError
from longrec.exporting import store_copies
from longrec.exporting.bundle import Bundle, EncoderFacts
from longrec.exporting.offline import build_golden_tokens
from longrec.exporting.scale import Scale
from longrec.exporting.store_copies import copy_stores, copy_tokens
from longrec.exporting.write import export
from longrec.models.core.registry import build
from longrec.serve.online_source import OnlineSource, encode_golden, replay
from longrec.store.token_store import TokenInfo, TokenStore, Version
from longrec.training.token_source import find_source, open_source


@pytest.fixture(scope="module")
def shop() -> token_shop.TokenShop:
    return token_shop.shop()


def test_a_source_bundle_describes_itself(shop: token_shop.TokenShop) -> None:
    bundle, about = Bundle.open(shop.source), json.loads((shop.tokens / "source" / "source.json").read_text())
    manifest = bundle.manifest
    assert (manifest.kind, manifest.model) == ("encoder", "iat")
    assert manifest.encoder == EncoderFacts(about["version"], Scale(about["mean"], about["std"]), 6, 1)
    assert manifest.source == {"run": about["run"], "version": about["version"]}
    assert max(manifest.parity["shapes"].values()) <= 1e-5
    assert manifest.parity["golden"]["worst"] <= 1e-5
    assert all(len(one.vectors) == len(one.request["candidates"]) and not one.scores for one in bundle.golden)


def test_tokens_of_any_impression_are_those_of_the_source(shop: token_shop.TokenShop) -> None:
    source = open_source(shop.tokens / "source")
    log, scale, online_source = source.log, Scale(source.mean, source.std), OnlineSource(Bundle.open(shop.source))
    samples = [
        token_shop.Sample(**token_shop.build_impression(log, row, range(1, 6))) for row in range(0, len(log), 23)
    ]
    golden = [build_golden_tokens(source.model, log.fitted, log.users, log.items, sample, scale) for sample in samples]
    for one, vectors in zip(golden, encode_golden(online_source, golden)):
        assert vectors.dtype == np.float32
        assert np.allclose(scale.unstandardize(vectors), scale.unstandardize(one.expected), atol=1e-5)


def test_a_machine_that_makes_other_tokens_is_noticed(shop: token_shop.TokenShop) -> None:
    bundle = Bundle.open(shop.source)
    one = bundle.golden[0]
    bundle.golden[0] = type(one)(one.request, vectors=(one.expected + 0.1).tolist())
    with pytest.raises(BundleError, match="golden request 0: tokens differ by"):
        OnlineSource(bundle).check()


def test_golden_vectors_that_differ_stop_an_export(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    source, bundle = open_source(shop.tokens / "source"), Bundle.open(shop.source)
    assert bundle.manifest.encoder is not None

    def replay_with_errors(folder: Path, golden: Any) -> list[np.ndarray]:
        return [vectors + np.float32(0.01) for vectors in replay(folder, golden)]

    with pytest.raises(BundleError, match="golden request 0: the exported program differs"):
        export(source.model, source.log.folder, tmp_path / "out", bundle.golden, replay_with_errors,
               fitted=source.log.fitted, encoder=bundle.manifest.encoder)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_vectors_that_depend_on_other_rows_do_not_leave(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    source, bundle = open_source(shop.tokens / "source"), Bundle.open(shop.source)
    torch.manual_seed(0)
    model = build({**token_shop.SOURCE, "order": "user", "stored": "after"}, source.log.fields())
    with pytest.raises(BundleError, match="vectors depend on other rows"):
        export(model, source.log.folder, tmp_path / "out", bundle.golden, replay, fitted=source.log.fitted,
               encoder=bundle.manifest.encoder)  # fmt: skip


def test_a_run_of_a_source_is_compressed_first(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    columns = token_shop.events(200)
    job = token_shop.make_job(tmp_path, columns, token_shop.SCHEMA)
    job["fit"] |= {"runs": str(tmp_path / "runs"), "max_steps": 2}
    run = commands.train({**job, "evaluate": {"n_resamples": 2}}, quiet=True)
    with pytest.raises(RunError, match=r"whose tokens are written by later weights(.|\n)*longrec compress"):
        commands.export(run, tmp_path / "out")


def test_find_source_returns_the_folder_or_none(shop: token_shop.TokenShop, tmp_path: Path) -> None:
    folder = shop.tokens / "source"
    assert find_source(shop.tokens) == find_source(folder) == folder
    assert find_source(tmp_path) is None
    copy = Path(shutil.copytree(folder, tmp_path / "source"))
    (copy / "source.json").write_text("{")
    with pytest.raises(RunError, match=r"source\.json: not readable"):
        open_source(copy)
    about = json.loads((folder / "source.json").read_text())
    (copy / "source.json").write_text(json.dumps({**about, "log": str(tmp_path / "gone")}))
    with pytest.raises(RunError, match="its prepared log cannot be opened"):
        open_source(copy)


def create_small_store(folder: Path, count: int = 50) -> TokenStore:
    store = TokenStore.create(folder, TokenInfo(2, sides={"label": 3}, versions=(Version(0),)))
    write(store, range(count))
    return store


def write(store: TokenStore, numbers: Any) -> None:
    at = np.array(list(numbers), np.int64)
    store.append(at % 3, at, instance=at, visible=at, version=0 * at, vectors=np.stack([at, at], 1).astype(np.float32),
                 sides={"label": at % 3}, available_at={"label": at})  # fmt: skip


def test_a_copy_is_compacted_and_has_nothing_of_the_writer(tmp_path: Path) -> None:
    with create_small_store(tmp_path / "s") as store:
        (tmp_path / "s" / "source").mkdir()
        (tmp_path / "s" / "source" / "source.json").write_text("{}")
        copy_tokens(store, tmp_path / "copy")
        write(store, range(50, 60))
    names = {path.relative_to(tmp_path / "copy").parts[0] for path in (tmp_path / "copy").rglob("*")}
    assert not names & {"source", "lock"}
    with TokenStore.open(tmp_path / "copy") as copy:
        assert len(copy) == 50
    log_file = next((tmp_path / "copy").glob("journal-*.log"))
    assert log_file.stat().st_size == 0


def test_a_copy_of_a_store_being_written_is_consistent(tmp_path: Path) -> None:
    end = threading.Event()
    with create_small_store(tmp_path / "s") as store:

        def work() -> None:
            number = 50
            while not end.is_set():
                write(store, [number])
                number += 1
                if number % 7 == 0:
                    store.compact()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for number in range(6):
                copy_tokens(store, tmp_path / f"copy{number}")
                with TokenStore.open(tmp_path / f"copy{number}") as copy:
                    held = sorted(int(i) for _, tokens in copy.scan() for i in tokens.instance)
                assert len(held) >= 50
                assert held == list(range(len(held)))
        finally:
            end.set()
            thread.join()


def test_a_store_that_cannot_be_copied_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create_small_store(tmp_path / "s") as store:
        monkeypatch.setattr(store_copies, "_copy", lambda folder, into: Path(into / "nothing").read_bytes())
        with pytest.raises(BundleError, match="no copy of the store"):
            copy_tokens(store, tmp_path / "copy")


def test_a_store_of_two_readers_is_copied_once_and_a_remote_one_never(tmp_path: Path) -> None:
    copies: list[Path] = []
    with create_small_store(tmp_path / "s") as one, create_small_store(tmp_path / "t") as two:
        two.location = "redis://host:1/0/shop"
        locations = copy_stores(
            {"a": one, "b": one, "c": two}, tmp_path, "tokens", lambda store, into: copies.append(into)
        )
    assert locations == {"a": "tokens/a", "b": "tokens/a", "c": "redis://host:1/0/shop"}
    assert copies == [tmp_path / "tokens" / "a"]


def test_a_manifest_names_stores_of_its_own_bundle_only(shop: token_shop.TokenShop) -> None:
    bundle = Bundle.open(shop.bundle)
    assert bundle.resolve_store("tokens/tokens") == str(shop.bundle / "tokens" / "tokens")
    assert bundle.resolve_store("redis://host/0/x") == "redis://host/0/x"
    for where in ("../tokens/v1", "/etc", "tokens/other"):
        with pytest.raises(BundleError, match="expected a folder of the bundle"):
            bundle.resolve_store(where)
