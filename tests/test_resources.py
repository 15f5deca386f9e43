"""Errors of machine resources: messages of four fields with exit code 2, and no partial output that looks complete."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from longrec import cli, resources
from longrec.errors import ResourceError
from longrec.resources import available_memory, format_bytes, resource_error, return_memory


@contextmanager
def limit_resource(kind: int, most: int) -> Iterator[None]:
    """Limit a resource of this process. A limit on the size of files is the closest to a full disk."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def models(out: int) -> tuple[int, str]:
    """Run ``longrec models`` in a process with its output in a file. Return exit code and standard error."""
    command = [sys.executable, "-m", "longrec.cli", "models"]
    done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random, n = np.random.default_rng(0), 20_000
    log = {
        "user": random.integers(0, 50, n),
        "item": random.integers(0, 5000, n),
        "time": np.arange(n),
        "click": np.arange(n) % 2,
    }
    pq.write_table(pa.table(log), tmp_path / "events.parquet")
    (tmp_path / "job.yaml").write_text(
        "name: one\n"
        "data:\n  log: events.parquet\n  schema: {user: user, item: item, time: {column: time, unit: step}, "
        "label: click, features: {item: {kind: id}}}\n"
        "model: {name: deepfm, mlp: [4]}\nfit: {max_steps: 2}\n"
    )
    return tmp_path


# ---- messages ---------------------------------------------------------------------------------------------


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever the tool raises
        call()
    return caught.value


def fill_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def write_table_to_full_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as file:  # never by name, as tools remove files they could not write
        pq.write_table(pa.table({"a": [1]}), pa.PythonFile(file, "w"))


def exhaust_memory() -> None:
    with duckdb.connect() as con:
        con.execute("SET memory_limit='5MB'; SET max_temp_directory_size='0MB'; SET threads=1")
        con.execute(
            "CREATE TABLE t AS SELECT range AS a, hash(range) AS b FROM range(3000000); SELECT * FROM t ORDER BY b"
        )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (fill_disk, "no space left .No space left on device"),
        (write_table_to_full_disk, "no space left"),
        (lambda: duckdb.sql("COPY (SELECT 1) TO '/proc/nothing/x' (FORMAT parquet)"), "/proc/nothing/x: cannot be"),
        (lambda: save_file({"a": torch.zeros(2)}, "/proc/nothing/x"), "/proc/nothing/.*: cannot be"),
        (lambda: Path("/proc/x").mkdir(), "^/proc/x: "),
        (lambda: (Path(__file__) / "x").mkdir(parents=True), "test_resources.py/x: "),
        (lambda: np.zeros(2**45), "too little memory .*available"),
        (lambda: torch.zeros(2**50), "too little memory"),
        (lambda: bytearray(2**60), "too little memory"),
        (exhaust_memory, "data.memory: too little memory|no space left"),
    ],
)  # fmt: skip
def test_real_errors_have_four_fields(call: Callable[[], object], says: str) -> None:
    error = resource_error(raised(call))
    assert isinstance(error, ResourceError)
    assert re.search(says, str(error)), str(error)
    assert all((error.where, error.found, error.expected, error.do))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "x.bin: no space left"),
        (errno.EDQUOT, "x.bin: no space left"),
        (errno.EROFS, "x.bin: no permission"),
        (errno.EACCES, "x.bin: no permission"),
        (errno.EMFILE, "x.bin: too many open files"),
        (errno.EFBIG, "x.bin: too large"),
        (errno.ENOMEM, "x.bin: too little memory"),
        (errno.EISDIR, "x.bin: cannot be read or written"),
    ],
)
def test_numbers_of_the_system(number: int, says: str) -> None:
    assert str(resource_error(OSError(number, os.strerror(number), "x.bin"))).startswith(says)


def test_a_fault_of_our_own_is_none_of_the_machine() -> None:
    for error in (RuntimeError("shapes differ"), KeyError("memory"), OSError(errno.EINVAL, "bad"), ValueError("x")):
        assert resource_error(error) is None


def test_a_library_without_memory() -> None:
    error = resource_error(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    assert "too little memory" in str(error)


def test_an_array_that_numpy_half_wrote() -> None:
    assert "no space left" in str(resource_error(OSError("4000 requested and 120 written")))


def test_messages_of_tools_that_carry_a_number() -> None:
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    error = type("SafetensorError", (Exception,), {"__module__": "safetensors"})(text)
    assert str(resource_error(error, "checkpoints/best")).startswith("checkpoints/best: no space left")


# ---- the command line --------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    said = models(write)
    os.close(write)
    assert said == (141, "")


def test_a_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        code, said = models(full.fileno())
    assert code == 2
    assert "no space left" in said


def test_what_does_not_fit_on_the_disk(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with limit_resource(resource.RLIMIT_FSIZE, 50_000):
        assert cli.main(["prepare", "job.yaml"]) == 2
    assert "part-0.parquet: too large to be written" in capsys.readouterr().err
    assert not any((job / "prepared").iterdir())

    assert cli.main(["prepare", "job.yaml"]) == 0
    with limit_resource(resource.RLIMIT_FSIZE, 100_000):
        assert cli.main(["train", "job.yaml", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "too large to be written" in said
    assert "fault of LongRec" not in said
    assert not list(job.rglob("*.partial"))
    assert not (job / "runs" / "one" / "results.json").exists()
    assert cli.main(["train", "--resume", "runs/one", "--quiet"]) == 0
    assert (job / "runs" / "one" / "results.json").exists()


def test_too_few_open_files(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lowest = os.open(os.devnull, os.O_RDONLY)  # the limit counts numbers, and some below it may be free
    os.close(lowest)
    with limit_resource(resource.RLIMIT_NOFILE, lowest):
        assert cli.main(["prepare", "job.yaml"]) == 2
    assert "too many open files" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    "command",
    [
        ["prepare", "job.yaml", "data.folder=/proc/x"],
        ["prepare", "job.yaml", "data.folder=job.yaml"],
        ["train", "job.yaml", "fit.runs=/proc/x", "--quiet"],
        ["synthetic", "one_interest", "--into", "/proc/x"],
        ["check", "job.yaml", "--json", "/proc/x"],
    ],
    ids=" ".join,
)
def test_a_folder_that_cannot_be_written(job: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "fault of LongRec" not in said
    assert "expected" in said


def test_json_goes_to_a_pipe_and_never_replaces_it(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(job / "pipe")
    reader = os.open(job / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert cli.main(["check", "job.yaml", "--json", "pipe"]) == 0
    assert b'"model": "deepfm"' in os.read(reader, 100_000)
    os.close(reader)
    assert (job / "pipe").is_fifo()
    assert cli.main(["check", "job.yaml", "--json", "/dev/full"]) == 2
    assert Path("/dev/full").is_char_device()
    assert "No space left" in capsys.readouterr().err


# ---- memory ------------------------------------------------------------------------------------------------------


def test_bytes_as_text() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 12_345, 64_000_000_000, 5e15)] == [
        "0 B", "999 B", "1 kB", "12.3 kB", "64 GB", "5,000 TB",
    ]  # fmt: skip


def test_the_least_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory()
    assert free is not None
    assert 0 < free < 2**50
    monkeypatch.setattr(resources, "_process_free", lambda: 1000)
    assert available_memory() == 1000
    monkeypatch.setattr(resources, "_container_free", lambda: -5)
    assert available_memory() == 0


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_container(tmp_path: Path, version: int) -> None:
    names = ("memory.max", "memory.current", "inactive_file") if version == 2 else (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # fmt: skip
    root = tmp_path if version == 2 else tmp_path / "memory"
    for folder, limit in ((root, "9000"), (root / "outer", "500"), (root / "outer" / "inner", "max")):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(
            (*names[:2], "memory.stat"), (limit, "300", f"anon 1\n{names[2]} 40\n{names[2].replace('in', '', 1)} 10\n")
        ):
            (folder / name).write_text(text)
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n" if version == 2 else "9:cpu:/\n4:cpuset,memory:/outer/inner\n0::/\n")
    assert resources._container_free(tmp_path, own) == 500 - 300 + 50
    own.write_text("0::/elsewhere\n" if version == 2 else "4:memory:/elsewhere\n")  # a container has its own root
    assert resources._container_free(tmp_path, own) == 9000 - 300 + 50


def test_the_collector_is_paused_and_left_as_it_was() -> None:
    with resources.pause_collector():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with resources.pause_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def read_resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_is_returned_to_the_system() -> None:
    pool, size = pa.default_memory_pool(), 64_000
    blocks = [np.ones(size, np.uint8) for _ in range(1_000)]
    arrow = [pa.array(np.arange(8_000)).take(pa.array(np.arange(8_000))) for _ in range(1_000)]
    used = read_resident()
    last = blocks.pop()  # a heap with a block at its end cannot shrink from there
    blocks.clear()
    arrow.clear()
    assert pool.bytes_allocated() < 1_000 * size
    return_memory()
    assert read_resident() < used - 1.5 * 1_000 * size
    assert last[0] == 1


def test_memory_stays_where_it_is_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return_memory()
