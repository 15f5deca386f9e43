"""Tests of the device of a run: its choice, its messages, and a whole run on a pretend device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrec import cli
from longrec.errors import ResourceError
from longrec.testing.pretend_device import DEVICE, PretendDevice
from longrec.training import fit, loop
from longrec.training.device import CPU, choose_device, choose_run_device
from longrec.training.evaluate import predict
from longrec.training.finished_run import Run
from longrec.training.fit import train


def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cpu") == choose_device("auto") == CPU
    # A run that was trained on a GPU is used where there is none.
    assert choose_run_device("cuda") == choose_run_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 1)
    assert choose_run_device("cuda") == choose_run_device("cpu", "cuda") == torch.device("cuda", 1)
    assert choose_device("cpu") == choose_run_device("cpu") == choose_run_device("cuda", "cpu") == CPU


def test_cuda_without_a_gpu_is_refused_before_anything_is_done(
    shop: Path, runs: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError) as caught:
        train(shop, runs("fit.device=cuda"), quiet=True)
    error = caught.value
    assert error.where == "fit.device"
    assert error.found.startswith("cuda, but ")
    assert error.expected
    assert "fit.device: auto or --device cpu" in error.do
    assert not (tmp_path / "runs").exists()


def test_commands_take_a_device(
    shop: Path, runs: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = train(shop, runs("fit.max_steps=2"), device="cpu", quiet=True)
    assert run.config.fit.device == "cpu"
    folder = str(run.folder)
    for command in (["evaluate", folder], ["predict", folder]):  # the first computes scores only where there are none
        assert cli.main([*command, "--split", "train", "--device", "cuda"]) == 2
        assert "longrec: ResourceError: --device: cuda, but" in capsys.readouterr().err
        assert cli.main([*command, "--split", "train", "--device", "cpu"]) == 0
    assert cli.main(["train", str(shop), *runs(), "--device", "cuda"]) == 2
    assert "ResourceError: fit.device: cuda" in capsys.readouterr().err


def train_far(
    shop: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[Run, Counter[str]]:
    """Train on the pretend device, and count the waits for it inside training steps."""
    step, inside = loop.update, Counter[str]()

    def counted(*args: Any, **settings: Any) -> None:
        before = Counter(device.waits)
        step(*args, **settings)
        inside.update(device.waits - before)

    with PretendDevice() as device, monkeypatch.context() as patch:
        patch.setattr(fit, "choose_device", lambda setting: DEVICE)
        patch.setattr(loop, "update", counted)
        return train(shop, overrides, quiet=True, **settings), inside


def test_a_run_on_another_device_is_that_of_the_cpu_and_waits_in_no_step(
    shop: Path, runs: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = runs("fit.clip_norm=0.5", "fit.log_steps=4", "fit.val_checks_per_epoch=2", "fit.epochs=1")
    here = train(shop, [*overrides, "name=here"], quiet=True)
    there, waits = train_far(shop, [*overrides, "name=there"], monkeypatch)
    for split in ("valid", "test"):
        one, other = (run.predictions(split)["score"].to_numpy() for run in (here, there))
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert not waits
    # What a run writes holds no trace of its device.
    again = predict(there, "test", there.folder / "again.parquet", device="cpu", quiet=True)
    assert again.exists()
    assert all(tensor.device == CPU for tensor in there.model().state_dict().values())


@pytest.mark.parametrize("first", ["here", "there"])
def test_a_run_goes_on_on_another_device(
    shop: Path, runs: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    overrides = runs("fit.epochs=1", "fit.checkpoint_steps=3", "name=moves")
    whole = train(shop, [*overrides, "name=whole"], quiet=True)
    steps = 0

    def start(**settings: Any) -> Run:
        return train(shop, overrides, quiet=True, **settings)

    def start_far(**settings: Any) -> Run:
        return train_far(shop, overrides, monkeypatch, **settings)[0]

    begin, go_on = (start, start_far) if first == "here" else (start_far, start)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_checkpoint_due", lambda self: True)
        original = loop.Loop._checkpoint

        def interrupt(self: loop.Loop) -> None:
            nonlocal steps
            original(self)
            steps = self.state.step
            if steps == 7:
                raise KeyboardInterrupt

        patch.setattr(loop.Loop, "_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            begin()
    assert steps == 7
    moved = go_on(resume=whole.folder.parent / "moves")
    assert moved.results["steps"] == whole.results["steps"] > 7
    one, other = (run.predictions("test")["score"].to_numpy() for run in (whole, moved))
    np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_resumed_run_may_name_another_device(shop: Path, runs: Callable[..., list[str]]) -> None:
    run = train(shop, runs("fit.max_steps=2", "name=once", "fit.device=auto"), quiet=True)
    again = train(shop, runs("fit.max_steps=2", "name=once", "fit.device=cpu"), resume=run.folder, quiet=True)
    assert again.folder == run.folder
    assert again.results == run.results
