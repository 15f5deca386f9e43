"""Errors of machine resources: disk space, memory, permission, open files, a network.

``resource_error`` converts the errors of Python, DuckDB, Arrow, torch and safetensors to one kind of message.
``available_memory`` returns the bytes this process may still allocate, by the limits of machine, container and process.
``return_memory`` gives freed memory back to the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from longrec.errors import LongRecError, ResourceError

_DISK = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FILES = {errno.EMFILE, errno.ENFILE}
_PATH_ERRORS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTEMPTY,
}
_NETWORK = {
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT,
    errno.EPIPE,
}  # fmt: skip
_NUMBER = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)|\bcode: (\d+)", re.IGNORECASE)
_PHRASES = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
    "permission denied": errno.EACCES,
    "too many open files": errno.EMFILE,
    "no such file or directory": errno.ENOENT,
    "not a directory": errno.ENOTDIR,
    "is a directory": errno.EISDIR,
    "cannot allocate memory": errno.ENOMEM,
}
_NO_MEMORY = re.compile(
    r"bad_alloc|can't allocate memory|not enough memory|out of memory|failed to allocate|unable to allocate|"
    r"failed to allocate memory|cannot allocate memory|insufficient memory|failed to map segment",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r'(?:file|path) \\?"([^"\\]+)\\?"')
_HALF_WRITTEN = re.compile(r"^\d+ requested and \d+ written$")
_TOOLS = ("duckdb", "_duckdb", "torch", "safetensors", "pyarrow", "onnx", "onnxruntime", "numpy", "builtins")


def resource_error(error: BaseException, where: str = "") -> LongRecError | None:
    """Convert an error of the machine. Return None for an error of another kind.

    Args:
        where: the file that was read or written, for errors that do not name it.
    """
    location, number = _find_file(error) or where, _find_number(error)
    said = os.strerror(number) if number is not None else _first_line(error)
    spilled = "temp_directory" in str(error)  # DuckDB: no disk space for data that does not fit into memory
    if _is_memory(error) and not spilled:
        return _memory_error(location, error)
    if number in _DISK or _HALF_WRITTEN.match(str(error)) or (spilled and _is_memory(error)):
        do = "free some space, or write to another disk; data.folder and fit.runs set the folders of logs and runs"
        return ResourceError(location or "the disk", f"no space left ({said})", "free space for the file", do)
    if number == errno.EFBIG:
        do = "raise the limit (ulimit -f), or write to another file system"
        return ResourceError(location or "a file", f"too large to be written ({said})", "files of any size", do)
    if number in _DENIED:
        do = "change its permissions, or give another folder; data.folder and fit.runs set the folders of logs and runs"
        return ResourceError(location or "a file", f"no permission ({said})", "a folder you may read and write", do)
    if number in _FILES:
        return ResourceError(
            location or "files", f"too many open files ({said})", "a higher limit", "raise it: ulimit -n 4096"
        )
    if number in _PATH_ERRORS and _find_file(error) is not None:
        do = "check whether the path is another kind of file, or was removed while the command ran"
        return ResourceError(location, f"cannot be read or written ({said})", "a file or folder that can", do)
    if isinstance(error, OSError) and (number in _NETWORK or isinstance(error, ConnectionError | TimeoutError)):
        return ResourceError(location or "the network", f"the connection failed ({said})", "an answer", "try again")
    return None


def _find_file(error: BaseException) -> str | None:
    """Return the file that an error names."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(error.filename)
    tool = type(error).__module__.partition(".")[0]
    named = _FILE_NAME.search(str(error)) if tool in ("duckdb", "_duckdb", "safetensors") else None
    return None if named is None else named[1]


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or _find_number(error) == errno.ENOMEM:
        return True
    tool = type(error).__module__.partition(".")[0] in _TOOLS
    return (
        tool and isinstance(error, Exception) and not isinstance(error, OSError) and bool(_NO_MEMORY.search(str(error)))
    )


def _memory_error(location: str, error: BaseException) -> ResourceError:
    if type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb"):
        do = "lower data.threads; raise data.memory, DuckDB's share (400MB unless set), where the machine has more"
        return ResourceError(location or "data.memory", f"too little memory ({_first_line(error)})", "more of it", do)
    free = available_memory()
    left = "" if free is None else f", {format_bytes(free)} available"
    do = "use a smaller table (hash, min_count, dim), a smaller fit.batch_size, or a machine with more memory"
    return ResourceError(location or "memory", f"too little memory ({_first_line(error)}{left})", "more of it", do)


def _find_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, Exception) or type(error).__module__.partition(".")[0] not in _TOOLS:
        return None
    text = str(error)
    if (match := _NUMBER.search(text)) and not isinstance(error, ValueError | KeyError | TypeError):
        return int(next(filter(None, match.groups())))
    if type(error).__name__ in ("IOException", "SafetensorError") or isinstance(error, OSError):
        return next((number for phrase, number in _PHRASES.items() if phrase in text.lower()), None)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:1])[:200] or type(error).__name__


@contextlib.contextmanager
def pause_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running: for imports and tracing, which build many objects that stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def available_memory() -> int | None:
    """Return the bytes this process may still allocate: the least of machine, cgroup and process. None when unknown."""
    limits = [free for free in (_machine_free(), _container_free(), _process_free()) if free is not None]
    return max(min(limits), 0) if limits else None


def return_memory() -> None:
    """Return freed memory to the system, which the C library (glibc) and Arrow keep otherwise."""
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def require_memory(files: Iterable[Path], what: str) -> None:
    """Raise a ResourceError if files that are read into memory are larger than the available memory."""
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    free = available_memory()
    if free is not None and sum(sizes.values()) > free:
        raise ResourceError(
            str(max(sizes, key=lambda path: sizes[path])),
            f"{what} of {format_bytes(sum(sizes.values()))}",
            f"at most the {format_bytes(free)} of memory that are available",
            "use a machine with more memory, or train smaller tables",
        )


def require_disk(folder: Path, size: int, what: str, do: str) -> None:
    """Raise a ResourceError if a disk has too little space for files.

    Args:
        folder: folder on this disk.
        size: bytes of the files.
        what: the files, for the message.
        do: what to do, for the message.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        expected = f"at most the {format_bytes(free)} of disk space that are free"
        raise ResourceError(str(folder), f"{what} of {format_bytes(size)}", expected, do)


def _machine_free() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _container_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes left in the cgroups of the process, of version 2 or 1. Cached files count as free."""
    with contextlib.suppress(OSError):
        free = []
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory") and "memory" not in controllers.split(","):
                continue
            new = controllers == ""
            base = root if new else root / "memory"
            files, cached = ("memory.max", "memory.current"), ("inactive_file", "active_file")
            if not new:
                files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                cached = ("total_inactive_file", "total_active_file")
            here = base / path.lstrip("/")
            for folder in [here, *here.parents]:
                if folder != base and base not in folder.parents:
                    break
                if (left := _cgroup_free(folder, *files, cached)) is not None:
                    free.append(left)
        return min(free) if free else None
    return None


def _cgroup_free(folder: Path, limit: str, used: str, cached: tuple[str, ...]) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max" is no number: no limit
        now = int((folder / used).read_text())
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return most - now + sum(int(stat.get(name, 0)) for name in cached)
    return None


def _process_free() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        return soft - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return soft


def format_bytes(count: float) -> str:
    """Format a number of bytes for people.

    >>> format_bytes(999), format_bytes(64_000_000_000)
    ('999 B', '64 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}" if count < 100 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError
