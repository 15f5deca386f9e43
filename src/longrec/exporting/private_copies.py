"""Private copies of bundles, which servers read instead of folders that others may change while they are mapped.

One copy serves all processes of a user that read the same bundle. Its folder is its own lock::

    DIGEST                 a verified copy, named by the digest of the bundle: its users hold a shared lock
    DIGEST.partial         a copy that is being written: the writer holds an exclusive lock
    DIGEST.TOKEN.removed   a copy that is being removed: likewise

The last user removes a copy. What a killed process leaves has no lock, and the next process that opens a copy removes
it. systemd-tmpfiles, which removes old files of a temporary directory, leaves locked folders alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from longrec.errors import BundleError, ResourceError
from longrec.resources import require_disk, resource_error

COPIES = "LONGREC_COPIES"
"""Environment variable: the folder of the copies, by default ``longrec-copies-UID`` in the temporary directory."""
_OTHER_DISK = f"free some space, set {COPIES} to a folder on another disk, or serve with --no-copy"
_OWN = re.compile(r"[0-9a-f]{64}(\.partial|\.[0-9a-f]+\.removed)?")
_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
_AT_ONCE = 1 << 30

Verify = Callable[[Path, Path], None]


class PrivateCopy:
    """A copy that this process uses. Close it.

    Attributes:
        folder: its folder.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self._lock = folder, lock

    def share(self) -> PrivateCopy:
        """Return another use of the copy. The copy stays until both are closed."""
        lock = _lock(self.folder, fcntl.LOCK_SH)
        assert lock is not None, "removed during its use"
        return PrivateCopy(self.folder, lock)

    def close(self) -> None:
        """End the use, and remove the copy if nobody else uses it. Mapped files stay mapped."""
        lock, self._lock = self._lock, -1
        if lock < 0:
            return
        try:
            with contextlib.suppress(BlockingIOError):  # somebody else uses it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, self.folder):
                    _remove(self.folder)
        finally:
            os.close(lock)


def open_private_copy(folder: Path, digest: str, sizes: Mapping[str, int], verify: Verify) -> PrivateCopy:
    """Return the private copy of a folder, and write it if there is none.

    Args:
        folder: the folder.
        digest: SHA-256 in hexadecimal that identifies its content.
        sizes: its files, with the bytes of each.
        verify: called with the folder of a copy and the folder to name in errors. It raises an error if the copy is
            not what the digest identifies.

    Raises:
        ResourceError: if the disk has too little space, or the folder of the copies is not the user's own.
    """
    target = _open_base() / digest
    while True:  # until no other process removes the copy in between
        copy = _share(target)
        if copy is None:
            copy = _write(folder, target, sizes, verify)
        else:
            try:
                verify(target, target)
            except BaseException as error:
                copy.close()
                if isinstance(error, BundleError) and not target.exists():
                    continue  # left by a machine that went down before all was on its disk, and removed now
                raise
        if copy is not None:
            _remove_leftovers(target.parent)
            return copy


def _open_base() -> Path:
    """Return the folder of the copies, which only this user can write to."""
    set_folder = os.environ.get(COPIES)
    base = Path(set_folder).resolve() if set_folder else Path(tempfile.gettempdir(), f"longrec-copies-{os.getuid()}")
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = base.lstat()
    except OSError as error:
        raise resource_error(error, str(base)) or error from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        problem = "not a folder of this user alone"
        raise ResourceError(str(base), problem, "permissions 700", f"remove it, or set {COPIES} to another folder")
    return base


def _share(target: Path) -> PrivateCopy | None:
    """Return an existing copy with a shared lock. None if there is none."""
    lock = _lock(target, fcntl.LOCK_SH)
    return None if lock is None else PrivateCopy(target, lock)


def _write(folder: Path, target: Path, sizes: Mapping[str, int], verify: Verify) -> PrivateCopy | None:
    """Write a copy, or wait for a process that does. Return None if the copy has to be looked for again."""
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(mode=0o700, exist_ok=True)
    lock = _lock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        # Its writer shares the lock when it has finished. A wait for an exclusive one would last as long as the use.
        shared = _lock(partial, fcntl.LOCK_SH)
        if shared is not None:
            os.close(shared)
        return None
    copied = False
    try:
        if not target.exists():
            _clear(partial)
            what = f"a private copy of {folder}"
            require_disk(partial.parent, sum(sizes.values()), what, _OTHER_DISK)
            for name in sizes:
                _copy_file(folder / name, partial / name)
            verify(partial, folder)
            partial.rename(target)
            copied = True
            fcntl.flock(lock, fcntl.LOCK_SH)  # not in one step: another process may have removed it in between
        if copied and _is_at(lock, target):
            shared, lock = lock, -1
            return PrivateCopy(target, shared)
        return None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            space = "free space for the bundle"
            raise ResourceError(str(partial.parent), "no space left", space, _OTHER_DISK) from None
        raise resource_error(error, str(partial)) or error from None
    finally:
        if lock >= 0:
            if not copied:
                _remove(partial)
            os.close(lock)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file, on file systems with copy-on-write without a second copy of its blocks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb", buffering=0) as read, target.open("xb") as written:
        try:
            while os.copy_file_range(read.fileno(), written.fileno(), _AT_ONCE):
                continue
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        shutil.copyfileobj(read, written, 1 << 20)  # what the kernel has not copied, usually nothing
    target.chmod(0o400)


def _lock(path: Path, kind: int) -> int | None:
    """Lock a folder and return its descriptor. None if it is not there, or if a lock would have to wait and may not."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, kind)
            if _is_at(lock, path):
                return lock
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _is_at(lock: int, path: Path) -> bool:
    """Return True if a locked folder still has this path."""
    try:
        return os.path.samestat(os.fstat(lock), path.lstat())
    except FileNotFoundError:
        return False


def _remove_leftovers(base: Path) -> None:
    """Remove what nobody uses: the copies of processes that were killed."""
    for path in list(base.iterdir()):
        if _OWN.fullmatch(path.name):
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is not None:
                try:
                    _remove(path)
                finally:
                    os.close(lock)


def _remove(path: Path) -> None:
    """Remove a folder that is locked, first by its name, so that half of it is never taken for a copy."""
    removed = path
    if not path.name.endswith(".removed"):
        removed = path.rename(path.with_name(f"{path.name[:64]}.{secrets.token_hex(4)}.removed"))
    shutil.rmtree(removed, ignore_errors=True)  # the next process that opens a copy removes the rest


def _clear(folder: Path) -> None:
    """Remove what a killed process has written."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
