"""Configurations of other tools: read in place of a config, or written as a config of LongRec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError

if TYPE_CHECKING:
    from longrec.interop.easyrec import ImportedConfig

Config = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class JobSource:
    """A config in the form that a job reads.

    Attributes:
        config: an EasyRec configuration converted as by ``longrec import``, any other config as it is.
        error_context: adds to the faults of a job the lines of the file it came from.
        notes: one line per choice, and per field of an EasyRec configuration that is converted with changes, or not
            converted. Those that change results come first.
        text: the notes in the form of ``NOTES.md``. Empty for other configs.
    """

    config: Config
    error_context: AbstractContextManager[None] = field(default_factory=nullcontext)
    notes: tuple[str, ...] = ()
    text: str = ""


def read_job_source(source: Config, overrides: Sequence[str] = ()) -> JobSource:
    """Read a config of EasyRec or of LongRec.

    Raises:
        ConfigError: if the EasyRec configuration has faults. All are listed. Also for a pipeline.
    """
    from longrec.interop.easyrec_suffixes import is_easyrec
    from longrec.pipeline.config import is_pipeline_file

    if is_pipeline_file(source):
        fault = "is a pipeline and no config of a training; longrec check, serve and trace take it"
        raise ConfigError(str(source), [fault])
    if not is_easyrec(source):
        return JobSource(source)
    from longrec.interop import easyrec, easyrec_folder

    named = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    imported = easyrec.read(
        source,  # type: ignore[arg-type]  # is_easyrec is true of paths only
        user=named.get("data.schema.user"),
        item=named.get("data.schema.item"),
        options=False,
    )
    described, text = easyrec_folder.describe_notes(imported), easyrec_folder.format_notes(imported)
    lines = [f"note: {source}: {choice}" for choice in imported.choices]
    lines += [
        f"note: {source}:{one['line']}:{one['column']}: {one['field']}: {one['fate']}: {one['words']}"
        for one in described["notes"]
    ]
    return JobSource(imported.job(), _add_lines(imported), tuple(lines), text)


@contextmanager
def _add_lines(imported: ImportedConfig) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(imported.source), imported.locate(error.faults)) from None


def import_config(
    source: str | Path, into: str | Path, *, user: str | None = None, item: str | None = None
) -> dict[str, Any]:
    """Write an EasyRec configuration (``.config``) as config.yaml, schema.yaml and NOTES.md, or an fg.json as a schema.

    Args:
        into: a folder, whose other files are kept.
        user: column of the user. Default: chosen by its name.
        item: column of the item. Default: chosen by its name.

    Returns:
        ``files``, the ``choices``, and the ``notes``: a field, its line and its status. Of an fg.json also ``rows``,
        the settings that the log needs.

    Raises:
        ConfigError: if the configuration has faults (all are listed, with line and column), or files exist already.
    """
    from longrec.interop import easyrec, easyrec_folder, fg, fg_folder
    from longrec.interop.easyrec_suffixes import SUFFIXES, is_easyrec
    from longrec.training.job import read_job

    if fg.is_generator(source):
        rules = fg.read(source, user=user, item=item)
        written = fg_folder.write(rules, into)
        return {**fg_folder.describe_notes(rules), "files": [str(file) for file in written]}
    if not is_easyrec(source):
        endings = ", ".join(SUFFIXES)
        description = (
            f"an unknown kind of file; expected an EasyRec configuration ({endings}) or an fg.json ({fg.SUFFIX})"
        )
        raise ConfigError(str(source), [description])
    imported = easyrec.read(source, user=user, item=item)
    with _add_lines(imported):
        read_job(imported.job())
    files = easyrec_folder.write(imported, into)
    return {**easyrec_folder.describe_notes(imported), "files": [str(file) for file in files]}
