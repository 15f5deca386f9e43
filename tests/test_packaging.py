"""The two commands of the README, and that they set up their requirements."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def list_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [word for group in extras.values() for word in group]
    return [Requirement(word) for word in lines if not word.startswith("longrec")]


def test_constraints_are_plain_pins() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[0-9a-z.]+", line), f"{line!r} is no plain pin (a local label?)"


def test_every_dependency_is_pinned_inside_its_range() -> None:
    for requirement in list_requirements():
        name = canonicalize_name(requirement.name)
        assert name in read_pins(), f"{name} is missing in constraints.txt"
        assert requirement.specifier.contains(read_pins()[name]), f"{requirement} against {read_pins()[name]}"


def test_the_makefile_pins_the_same_torch() -> None:
    match = re.search(r"^TORCH\s*:=\s*(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert match is not None
    assert match[1] == read_pins()["torch"]


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    code = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert code == ["set -e", 'cd "$(dirname "$0")/.."', "make test"]
    assert script.stat().st_mode & stat.S_IXUSR


FAKE = """#!/usr/bin/env bash
# Replaces python: makes a folder in place of a venv, and records the arguments of pip.
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip install"*"$FAIL_ON"*) [ -z "$FAIL_ON" ] || exit 1 ;;
esac
"""


class Checkout:
    """A folder with the real Makefile and a python that only records its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "python").write_text(FAKE)
        (folder / "python").chmod(0o755)

    def setup(self, fail_on: str = "") -> tuple[int, list[str]]:
        """Run ``make setup``. Return the exit status, and the calls without their options."""
        self.calls.write_text("")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        done = subprocess.run(
            ["make", "setup", f"PYTHON={self.folder / 'python'}"],
            cwd=self.folder,
            env={**environment, "CALLS": str(self.calls), "FAIL_ON": fail_on},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = self.calls.read_text().splitlines()
        commands = [" ".join(w for w in c.split() if w not in ("-qq", "-m")) for c in calls if not c.startswith("-c")]
        return done.returncode, commands


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("make") is None:
        pytest.fail("make is not installed")
    return Checkout(tmp_path)


TORCH = f"pip install torch=={read_pins()['torch']}"
PACKAGE = "pip install -c constraints.txt -e .[dev]"


def test_set_up_makes_a_venv_then_torch_then_the_package_and_then_costs_nothing(checkout: Checkout) -> None:
    assert checkout.setup() == (0, ["venv .venv", TORCH, PACKAGE])
    assert checkout.setup() == (0, [])


@pytest.mark.parametrize("at", ["torch", "constraints"])
def test_set_up_that_was_interrupted_starts_over(checkout: Checkout, at: str) -> None:
    code, _ = checkout.setup(fail_on=at)
    assert code != 0
    (checkout.folder / ".venv" / "half.so").write_text("")
    assert checkout.setup() == (0, ["venv .venv", TORCH, PACKAGE])
    assert not (checkout.folder / ".venv" / "half.so").exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_set_up_follows_changes(checkout: Checkout, name: str) -> None:
    checkout.setup()
    with (checkout.folder / name).open("a") as file:
        file.write("\n# changed\n")
    assert checkout.setup() == (0, [TORCH, PACKAGE])
    assert checkout.setup() == (0, [])


def test_set_up_takes_an_environment_that_is_already_there(checkout: Checkout) -> None:
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.folder / "python", checkout.folder / ".venv" / "bin" / "python")
    assert checkout.setup() == (0, [TORCH, PACKAGE])


def test_set_up_repairs_a_moved_or_broken_environment(checkout: Checkout) -> None:
    checkout.setup()
    stamp = checkout.folder / ".venv" / ".stamp"
    stamp.write_text(stamp.read_text().replace(str(checkout.folder), "elsewhere"))
    assert checkout.setup() == (0, ["venv .venv", TORCH, PACKAGE])
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    assert checkout.setup() == (0, ["venv .venv", TORCH, PACKAGE])
