from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from longrec.errors import RunError
from longrec.training import checkpoint
from longrec.training.checkpoint import State, recover_folder, replace_file, replace_folder
from longrec.training.sparse_optimizers import LazyAdam


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3))
        self.top = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.top[3].weight = nn.Parameter(torch.randn(1, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.top(nn.functional.embedding(ids, self.table, sparse=True))


def build_small_model() -> tuple[Small, dict[str, torch.optim.Optimizer]]:
    model = Small()
    dense = torch.optim.AdamW(model.top.parameters(), lr=0.1, fused=True)
    return model, {"dense": dense, "tables": LazyAdam([model.table], lr=0.1)}


def move(model: Small, optimizers: dict[str, torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        model(torch.randint(6, (8,))).sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def write_former_names(folder: Path) -> None:
    """Rename the file and the key of optimizer state to those of versions up to 0.4."""
    (folder / "optimizer.safetensors").rename(folder / "optimiser.safetensors")
    content = json.loads((folder / "state.json").read_text())
    content["optimisers"] = content.pop("optimizers")
    (folder / "state.json").write_text(json.dumps(content))


@pytest.mark.parametrize("former_names", [False, True])
def test_a_loaded_checkpoint_goes_on_bit_by_bit(tmp_path: Path, former_names: bool) -> None:
    torch.manual_seed(0)
    model, optimizers = build_small_model()
    move(model, optimizers, 3)
    state = State(step=3, epoch=1, position=2, best=0.1 + 0.2, loss_sum=1 / 3, stopped="patience")
    checkpoint.save(tmp_path / "last", model, optimizers, state)
    if former_names:
        write_former_names(tmp_path / "last")
    move(model, optimizers, 3)
    again, others = build_small_model()
    torch.manual_seed(5)
    assert checkpoint.load(tmp_path / "last", again, others) == state
    move(again, others, 3)
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(one, other), name


def test_there_may_be_no_checkpoint_yet(tmp_path: Path) -> None:
    model, optimizers = build_small_model()
    assert checkpoint.load(tmp_path / "last", model, optimizers) is None


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def other_version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "longrec-checkpoint-9"}))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("weights.safetensors", flip, "a complete checkpoint of this model"),
        ("optimizer.safetensors", Path.unlink, "a complete checkpoint of this model"),
        ("state.json", flip, "a complete checkpoint of this model"),
        ("state.json", other_version, "another version"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, damage: Callable[[Path], None], says: str) -> None:
    model, optimizers = build_small_model()
    checkpoint.save(tmp_path / "last", model, optimizers, State())
    damage(tmp_path / "last" / name)
    with pytest.raises(RunError, match=says):
        checkpoint.load(tmp_path / "last", model, optimizers)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizers = build_small_model()
    checkpoint.save(tmp_path / "last", model, optimizers, State())
    wider = Small()
    wider.top[3] = nn.Linear(4, 2)
    with pytest.raises(RunError, match="of this model"):
        checkpoint.load(tmp_path / "last", wider, optimizers)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("calls", range(12))
def test_a_folder_is_whole_whenever_its_writer_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Stop before every call that writes to the disk, in turn. Then read, and write again."""

    def write(text: str) -> None:
        replace_folder(tmp_path / "a", lambda into: [(into / n).write_text(text) for n in "xy"])  # type: ignore[arg-type,return-value]

    def read() -> str:
        recover_folder(tmp_path / "a")
        x, y = ((tmp_path / "a" / name).read_text() for name in "xy")
        assert x == y
        return x

    write("old")
    left = calls

    def count(real: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*arguments: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*arguments, **named)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("rename", "mkdir", "write_text"):
            patch.setattr(Path, name, count(getattr(Path, name)))
        patch.setattr(checkpoint.shutil, "rmtree", count(checkpoint.shutil.rmtree))
        patch.setattr(checkpoint, "sync", count(checkpoint.sync))
        try:
            write("new")
            assert calls >= 10, "all calls were tried"
        except Killed:
            pass
    assert read() in ("old", "new")
    write("third")
    assert read() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half")
        raise Killed

    replace_file(tmp_path / "b" / "x.json", lambda path: path.write_text("old") and None)
    with pytest.raises(Killed):
        replace_file(tmp_path / "b" / "x.json", half)
    assert (tmp_path / "b" / "x.json").read_text() == "old"
