"""Configurations of other tools at the command line: read where a config is expected, or written as one of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError

if TYPE_CHECKING:
    from longrec.interop.easyrec import Imported

Config = str | Path | Mapping[str, Any]


def as_job(source: Config, overrides: Sequence[str]) -> tuple[Config, AbstractContextManager[None]]:
    """A config as a job can read it, and what tells its faults with the lines of the file it came from.

    An EasyRec configuration becomes the words that ``longrec import`` would write; any other config stays.
    """
    from longrec.interop import easyrec

    if not easyrec.is_easyrec(source):
        return source, nullcontext()
    named = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    found = easyrec.read(
        source,  # type: ignore[arg-type]  # is_easyrec says that it is a path
        user=named.get("data.schema.user"),
        item=named.get("data.schema.item"),
    )
    return found.job(), _with_lines(found)


@contextmanager
def _with_lines(found: Imported) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(found.source), found.located(error.faults)) from None


def import_config(
    source: str | Path, into: str | Path, *, user: str | None = None, item: str | None = None
) -> dict[str, Any]:
    """Write an EasyRec configuration (``.config``) as config.yaml, schema.yaml and NOTES.md, or an fg.json as a schema.

    Args:
        into: a folder; what it holds stays.
        user: column of the user, where its name does not tell.
        item: column of the item, where its name does not tell.

    Returns:
        ``files``, the ``choices`` that were made, and the ``notes``: a field, its line, what became of it; of an
        fg.json also ``rows``, which the log needs besides.

    Raises:
        ConfigError: all faults of the configuration, with line and column; files in the way.
    """
    from longrec.interop import easyrec, easyrec_folder, fg, fg_folder
    from longrec.train.job import read_job

    if fg.is_generator(source):
        rules = fg.read(source, user=user, item=item)
        written = fg_folder.write(rules, into)
        return {**fg_folder.told(rules), "files": [str(file) for file in written]}
    if not easyrec.is_easyrec(source):
        endings = ", ".join(easyrec.SUFFIXES)
        words = f"an unknown kind of file; expected an EasyRec configuration ({endings}) or an fg.json ({fg.SUFFIX})"
        raise ConfigError(str(source), [words])
    found = easyrec.read(source, user=user, item=item)
    with _with_lines(found):
        read_job(found.job())
    files = easyrec_folder.write(found, into)
    return {**easyrec_folder.told(found), "files": [str(file) for file in files]}
