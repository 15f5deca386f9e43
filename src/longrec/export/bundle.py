"""A bundle: a folder that answers requests anywhere, and is refused when a byte of it is not as it was written.

Format ``longrec-bundle-1`` (``-2`` where a table has versions, which the first could not read)::

    manifest.json     what it is: model, inputs, counts, size and SHA-256 of every other file, parity figures
    manifest.sha256   the digest of manifest.json, as ``sha256sum`` writes and checks it
    program.onnx      the model (with program.onnx.data beside it above 1.5 GB of weights)
    schema/           the fitted schema: features.json and vocabularies
    users/ items/     encoded tables, row 0 unknown; where they have versions, since when each holds
    history/          past events by user and time, just the columns that histories read (none where none is read)
    tokens/           a token store for each history of tokens (a store on a server is named by its address instead)
    knowledge/        what extractors left, for vector features
    golden.json       requests and the scores (of an encoder: the vectors) they must get

Opening needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from longrec.errors import BundleError
from longrec.export.golden import GoldenRequest
from longrec.export.inputs import Input
from longrec.export.scale import Scale
from longrec.features.fitted import FittedSchema
from longrec.features.table import EntityTable
from longrec.store.disk_store import DiskStore

FORMAT, VERSIONED_FORMAT = "longrec-bundle-1", "longrec-bundle-2"
MANIFEST, DIGEST, PROGRAM, GOLDEN = "manifest.json", "manifest.sha256", "program.onnx", "golden.json"
SCHEMA, USERS, ITEMS, HISTORY, TOKENS, KNOWLEDGE = "schema", "users", "items", "history", "tokens", "knowledge"
RANKER, ENCODER = "ranker", "encoder"
EXPORT_AGAIN = "copy the bundle again, or export it again"


class FileFacts(msgspec.Struct, frozen=True):
    """What a file must be."""

    bytes: int
    sha256: str


class EncoderFacts(msgspec.Struct, frozen=True):
    """What is known of an encoder besides its program.

    Attributes:
        version: the number under which it writes tokens.
        scale: on which it writes them.
        width: numbers of a token.
        slots: equal parts it falls into.
    """

    version: int
    scale: Scale
    width: int
    slots: int


class Manifest(msgspec.Struct, frozen=True):
    """What ``manifest.json`` says.

    Attributes:
        version: of LongRec, when it was written.
        kind: ranker or encoder.
        counts: users, items, events, features, histories.
        source: where it came from, as the exporter told.
        parity: largest differences between torch and onnxruntime, and between offline and online.
        tokens: where the tokens of each token history lie: a folder of the bundle, or an address.
        knowledge: the folder of the bundle with what each vector feature reads.
        encoder: of an encoder.
    """

    format: str
    version: str
    model: str
    kind: str
    inputs: list[Input]
    counts: dict[str, int]
    files: dict[str, FileFacts]
    created: str
    source: dict[str, Any]
    parity: dict[str, Any]
    tokens: dict[str, str] = {}
    knowledge: dict[str, str] = {}
    encoder: EncoderFacts | None = None


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        store: past events, or None when the model reads none or a request brings them.
    """

    path: Path
    manifest: Manifest
    fitted: FittedSchema
    users: EntityTable
    items: EntityTable
    store: DiskStore | None
    golden: list[GoldenRequest]

    @property
    def program(self) -> Path:
        """The ONNX file."""
        return self.path / PROGRAM

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: another bundle has another."""
        return (self.path / DIGEST).read_text().split()[0]

    def resolve_store(self, location: str) -> str:
        """Where a store that the manifest names can be opened: a folder of the bundle, or an address as it is.

        Raises:
            BundleError: a folder that is not one of the bundle.
        """
        if "://" in location:
            return location
        if not any(name.startswith(f"{location}/") for name in self.manifest.files):
            raise BundleError(
                str(self.path / MANIFEST), f"a store in {location!r}", "a folder of the bundle", EXPORT_AGAIN
            )
        return str(self.path / location)

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Verify every file, then open.

        Raises:
            BundleError: no bundle, another format, or a file that is altered, missing or extra; it is named.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        _verify(folder, manifest.files)
        return cls(
            folder,
            manifest,
            FittedSchema.load(folder / SCHEMA),
            EntityTable.load(folder / USERS),
            EntityTable.load(folder / ITEMS),
            DiskStore.open(folder / HISTORY) if f"{HISTORY}/segment.json" in manifest.files else None,
            msgspec.json.decode((folder / GOLDEN).read_bytes(), type=list[GoldenRequest]),
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest, held against its own digest.

    Raises:
        BundleError: no bundle, an altered manifest, or another format.
    """
    try:
        content, digest = (folder / MANIFEST).read_bytes(), (folder / DIGEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = Path(str(error.filename)).name
        problem = f"no file {missing}" if folder.is_dir() else "no such folder"
        raise BundleError(str(folder), problem, "a folder that longrec export wrote") from None
    if digest != format_digest(content):
        raise BundleError(
            str(folder / MANIFEST),
            f"its SHA-256 is not the one in {DIGEST}",
            "the bytes that were exported",
            EXPORT_AGAIN,
        )
    try:
        format_name = msgspec.json.decode(content, type=dict[str, Any]).get("format")
        if format_name not in (FORMAT, VERSIONED_FORMAT):
            raise BundleError(str(folder), f"format {format_name!r}", FORMAT, "export it again with this version")
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(str(folder / MANIFEST), f"not a manifest ({error})", FORMAT, EXPORT_AGAIN) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and its digest."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_bytes(format_digest(content))


def format_digest(manifest: bytes) -> bytes:
    """The content of ``manifest.sha256``."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def collect_file_facts(folder: Path) -> dict[str, FileFacts]:
    """Size and SHA-256 of every file of a bundle, the manifest and its digest left out."""
    return {
        name: FileFacts(path.stat().st_size, compute_sha256(path)) for name, path in sorted(_list_files(folder).items())
    }


def _list_files(folder: Path) -> dict[str, Path]:
    paths = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_dir():
            paths[name] = path
    return {name: path for name, path in paths.items() if name not in (MANIFEST, DIGEST)}


def _verify(folder: Path, expected: dict[str, FileFacts]) -> None:
    paths = _list_files(folder)
    if missing := sorted(set(expected) - set(paths)):
        raise BundleError(str(folder / missing[0]), "no such file", "every file of the manifest", EXPORT_AGAIN)
    if extra := sorted(set(paths) - set(expected)):
        raise BundleError(
            str(folder / extra[0]), "a file the manifest does not name", "nothing else in the folder", "take it away"
        )
    for name, facts in expected.items():
        path = paths[name]
        if path.is_symlink() or not path.is_file():
            raise BundleError(str(path), "no plain file", "a plain file inside the bundle", EXPORT_AGAIN)
        if path.stat().st_size != facts.bytes:
            raise BundleError(str(path), f"{path.stat().st_size} bytes", f"{facts.bytes} bytes", EXPORT_AGAIN)
        if compute_sha256(path) != facts.sha256:
            raise BundleError(
                str(path), "its SHA-256 is not the manifest's", "the bytes that were exported", EXPORT_AGAIN
            )


def compute_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
