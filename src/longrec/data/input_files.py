"""Files of an input: patterns, folders and links resolved to files, each once, with the kind of each file."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from longrec.data.settings import Source
from longrec.errors import DataError

PARQUET, ARROW, TEXT, JSON = "parquet", "arrow", "text", "json"
_KINDS = {
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".csv": TEXT,
    ".tsv": TEXT,
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".json": JSON,
}
_COMPRESSED = (".gz", ".zst")
READABLE = ".parquet, .arrow, .feather, and .csv, .tsv or .jsonl, also with .gz or .zst"
"""Names of the files that can be read, for messages."""
_PACKED = {".bz2", ".xz", ".zip", ".lz4", ".7z", ".tar", ".tgz", ".br", ".sz", ".lzo"}
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def get_kind(path: Path) -> str:
    """Return the kind of a file by its name: ``PARQUET``, ``ARROW``, ``TEXT`` or ``JSON``.

    Raises:
        DataError: another name.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in _COMPRESSED
    kind = _KINDS.get(suffixes[-2] if len(suffixes) > 1 else ".csv") if compressed else _KINDS.get(path.suffix.lower())
    if compressed and kind is None:
        kind = TEXT  # such as clicks.2024.gz
    if kind is not None and not (compressed and kind in (PARQUET, ARROW)):
        return kind
    ending = "".join(suffixes[-2:]) if compressed else path.suffix
    if compressed:
        do = "unpack it: these files are compressed inside"
    elif path.suffix.lower() in _PACKED:
        do = "unpack it, or compress it with gzip or zstd"
    elif path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        do = "save the sheet as CSV"
    else:
        do = "rename it, write it as Parquet, or declare the cells of a text file with rows.columns"
    raise DataError(str(path), f"a file of the kind {ending!r}", READABLE, do)


def list_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match patterns, and the files of folders, also below folders named ``key=value``.

    Raises:
        DataError: a pattern without matches, or a folder that is empty or has other folders.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches = [path for match in sorted(glob.glob(pattern)) for path in _list_path(Path(match), pattern)]
        if Path(pattern).is_dir():  # a name that also reads as a pattern, such as [1]
            matches = list(_list_path(Path(pattern), pattern))
        if not matches:
            expected = "a Parquet, CSV, JSON lines or Arrow file (or a pattern that matches some)"
            raise DataError(pattern, "no such file", expected)
        files += matches
    return files


def _list_path(path: Path, pattern: str) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    # Other tools write marker files beside the data, such as _SUCCESS and .part-0.parquet.crc.
    own = sorted(one for one in path.iterdir() if one.name[0] not in "._")
    other = [one for one in own if one.is_dir() and "=" not in one.name]
    if other or not own:
        what = f"the folder {other[0].name!r} in it" if other else "an empty folder"
        where = pattern if str(path) == pattern else str(path)
        expected = "a folder of files of one kind, or of folders named key=value"
        raise DataError(where, what, expected, "use a pattern that matches the files")
    for one in own:
        yield from _list_path(one, pattern)


def group_files_by_split(source: Source) -> dict[str | None, list[Path]]:
    """Return the files per split. The files of an input without splits have the key None.

    Raises:
        DataError: a pattern without matches, a file listed twice, or a file in two splits.
    """
    if source.splits is None:
        return {None: _check_unique(list_files(source.files or ()))}
    files: dict[str | None, list[Path]] = {split: list_files(own) for split, own in source.splits.each().items()}
    owner: dict[tuple[int, int], str | None] = {}
    for split, own in files.items():
        for path in own:
            if owner.setdefault(_identify(path), split) != split:
                raise DataError(
                    str(path),
                    f"a file of {owner[_identify(path)]} and of {split}",
                    "every file in one split",
                    "metrics on training rows do not measure new rows; use other files",
                )
        _check_unique(own)
    return files


def _identify(path: Path) -> tuple[int, int]:
    """Return the device and inode of a file, which are the same for every path or link to it."""
    about = path.stat()
    return about.st_dev, about.st_ino


def _check_unique(files: list[Path]) -> list[Path]:
    """Return the files, or raise an error for a file that is listed twice, since its rows would count twice."""
    named: dict[tuple[int, int], Path] = {}
    for path in files:
        other = named.setdefault(_identify(path), path)
        if other is not path:
            by = "listed twice" if str(other) == str(path) else f"the same file as {other}"
            raise DataError(
                str(path),
                f"{by}, so each of its rows would count twice",
                "every file once",
                "remove one of the names, or narrow the pattern",
            )
    return files


def read_partitions(path: Path) -> dict[str, str | None]:
    """Return the values that the folders of a path name, such as ``day=2026-01-31`` of Spark and Hive."""
    pairs = [folder.partition("=") for folder in path.parent.parts if "=" in folder.strip("=")]
    return {unquote(key): None if value == _NULL_FOLDER else unquote(value) for key, _, value in pairs if key}


def find_partition_types(paths: Sequence[Path]) -> dict[str, str]:
    """Return the SQL type of each column that the folders of all paths name: BIGINT, or VARCHAR."""
    partitions = [read_partitions(path) for path in paths]
    shared = [key for key in partitions[0] if all(key in own for own in partitions)]
    types = {}
    for key in shared:
        values = {own[key] for own in partitions} - {None}
        whole = all(_WHOLE.fullmatch(value) for value in values if value is not None)
        types[key] = "BIGINT" if whole and values else "VARCHAR"
    return types
