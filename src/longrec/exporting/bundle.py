"""Bundles: folders with everything a server needs, verified by checksums when they are opened.

Format ``longrec-bundle-3``. The formats 1 and 2, with one program and its inputs in the manifest, are read too::

    manifest.json     model, programs, counts, size and SHA-256 of every other file, parity figures
    manifest.sha256   the digest of manifest.json, in the format of ``sha256sum``
    program.onnx      the only program (with program.onnx.data beside it above 1.5 GB of weights)
    NAME.onnx         one of several programs (``users.onnx``, ``items.onnx``, ``update.HISTORY.onnx``, ``step.1.onnx``)
    weights.bin       the weights of several programs, each weight once
    index.npy         vectors of all items, of a vector retriever
    index.lists       inverted lists of these vectors, if they are searched approximately
    item_columns.parquet  raw columns of the item table, for conditions on items
    schema/           the fitted schema: features.json and vocabularies
    users/ items/     encoded tables, row 0 for unknown keys, with versions also the start of their validity
    history/          events by user and time, only the columns that histories read (absent if none is read)
    tokens/           one token store per token history (a remote store is named by its address instead)
    knowledge/        outputs of extractors, for vector features
    golden.json       requests with the expected scores (of an encoder: vectors, of a retriever: items and scores)

Opening a bundle needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.explorer_facts import ExplorerFacts
from longrec.exporting.golden import GoldenRequest
from longrec.exporting.inputs import ENCODE, OUTPUT, SCORE, TOKEN_OUTPUT, Input, ProgramFacts, rename_input
from longrec.exporting.scale import Scale
from longrec.features.entity_table import EntityTable
from longrec.features.fitted_schema import FittedSchema
from longrec.index.build import IndexFacts
from longrec.store.disk_store import DiskStore

if TYPE_CHECKING:
    from longrec.exporting.private_copies import PrivateCopy

FORMAT, FORMER_FORMATS = "longrec-bundle-3", ("longrec-bundle-1", "longrec-bundle-2")
MANIFEST, DIGEST, PROGRAM, GOLDEN = "manifest.json", "manifest.sha256", "program.onnx", "golden.json"
SCHEMA, USERS, ITEMS, HISTORY, TOKENS, KNOWLEDGE = "schema", "users", "items", "history", "tokens", "knowledge"
WEIGHTS, INDEX, LISTS, REQUESTS = "weights.bin", "index.npy", "index.lists", "requests.npy"
RANKER, ENCODER, RETRIEVER, RERANKER = "ranker", "encoder", "retriever", "reranker"
_SHOWN = ("users", "items", "events")
EXPORT_AGAIN = "copy the bundle again, or export it again"


class FileFacts(msgspec.Struct, frozen=True):
    """Expected size and checksum of a file."""

    bytes: int
    sha256: str


class EncoderFacts(msgspec.Struct, frozen=True):
    """Description of an exported encoder, in addition to its ONNX model.

    Attributes:
        version: source version of the tokens that it writes.
        scale: scale of the tokens it writes.
        width: numbers per token.
        slots: number of equal blocks per token.
    """

    version: int
    scale: Scale
    width: int
    slots: int


class GeneratorFacts(msgspec.Struct, frozen=True):
    """Description of the paths and the search of a generator.

    Attributes:
        path: the features whose tokens are generated, in this order.
        sizes: number of tokens of each.
        attributes: how many of them are attributes. Others are codes, and an item without one is not generated.
        beam_width: beams of a search, or k if that is more. None: all paths, so that it is exact.
        renormalize: the probabilities of the children of each beam add up to 1.
        smoothing: share of the probability of each code but the first that all servable ones get alike.
    """

    path: list[str]
    sizes: list[int]
    attributes: int
    beam_width: int | None
    renormalize: bool
    smoothing: float = 0.0


class StateFacts(msgspec.Struct, frozen=True):
    """Description of the states of one history, see ``exporting/states.py``.

    Attributes:
        start: state of a user without events, W numbers. Empty: zeros.
        delay: time after an event until nothing of it changes any more, in milliseconds or steps.
        width: W. 0 in bundles of earlier versions, whose ``start`` has them.
        holds_newest: an event is final when the next one is there, so that the newest stays outside the state.
    """

    start: list[float]
    delay: int
    width: int = 0
    holds_newest: bool = False

    def make_start(self) -> NDArray[np.float32]:
        """Return the state of a user without events, ``[W]``."""
        return np.array(self.start, np.float32) if self.start else np.zeros(self.width, np.float32)


class Manifest(msgspec.Struct, frozen=True):
    """Content of ``manifest.json``.

    Attributes:
        version: LongRec version of the exporter.
        kind: ranker, encoder, retriever or reranker.
        programs: programs by name, see ``exporting/programs.py``.
        counts: users, items, events, features, histories.
        source: origin, as passed by the exporter.
        parity: largest differences between torch and onnxruntime, and between offline and online.
        tokens: store of each token history: a folder of the bundle, or an address.
        knowledge: folder of the bundle with the vectors of each feature of kind ``embedding``.
        encoder: description of an encoder. None for another kind.
        index: description of the index of a vector retriever. None for another kind, and of earlier versions.
        generator: description of a generator. None for another kind.
        states: description of the states of users, by history. Empty for a bundle without them.
        explorer: description of the explorer of a ranker. None without one.
        events_per_candidate: False if a candidate costs the same however many events its history has, as with a state.
    """

    format: str
    version: str
    model: str
    kind: str
    programs: dict[str, ProgramFacts]
    counts: dict[str, int]
    files: dict[str, FileFacts]
    created: str
    source: dict[str, Any]
    parity: dict[str, Any]
    tokens: dict[str, str] = {}
    knowledge: dict[str, str] = {}
    encoder: EncoderFacts | None = None
    index: IndexFacts | None = None
    generator: GeneratorFacts | None = None
    states: dict[str, StateFacts] = {}
    explorer: ExplorerFacts | None = None
    events_per_candidate: bool = True

    def __repr__(self) -> str:
        """Return what is in the bundle, on one line."""
        counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if what in _SHOWN)
        size = sum(file.bytes for file in self.files.values()) / 1e6
        return f"Manifest of a bundle: {self.kind} {self.model}, {counts}; {len(self.files)} files of {size:.1f} MB"

    @property
    def inputs(self) -> list[Input]:
        """Inputs of all programs, each once."""
        return list({entry.name: entry for program in self.programs.values() for entry in program.inputs}.values())


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        path: its folder, the target of a symbolic link. Errors name it, and state and changes are beside it.
        files: folder with the files that are read: ``path``, or a private copy.
        digest: SHA-256 of the manifest, which identifies the bundle.
        store: earlier events. None if the model reads none, or if requests contain them.
        copy: the private copy. None if the bundle is read in place.
    """

    path: Path
    files: Path
    digest: str
    manifest: Manifest
    fitted: FittedSchema
    users: EntityTable
    items: EntityTable
    store: DiskStore | None
    golden: list[GoldenRequest]
    copy: PrivateCopy | None = None

    def close(self) -> None:
        """End the use of a private copy. Nothing happens to a bundle that is read in place."""
        if self.copy is not None:
            self.copy.close()

    def resolve_store(self, location: str) -> str:
        """Return the path or address of a store from its location in the manifest.

        Raises:
            BundleError: if the location is a folder outside the bundle.
        """
        if "://" in location:
            return location
        if not any(name.startswith(f"{location}/") for name in self.manifest.files):
            raise BundleError(
                str(self.path / MANIFEST), f"a store in {location!r}", "a folder of the bundle", EXPORT_AGAIN
            )
        return str(self.files / location)

    @classmethod
    def open(cls, path: str | Path, private: bool = False) -> Bundle:
        """Verify every file and open the bundle.

        Args:
            path: its folder.
            private: read a private copy, so that nothing that happens to the folder later has an effect. Close it.

        Raises:
            BundleError: if the folder is not a bundle, has another format, or a file is altered, missing or extra.
            ResourceError: if the disk has too little space for a copy.
        """
        folder = Path(path)
        folder = folder.resolve() if folder.is_symlink() else folder
        manifest = read_manifest(folder)
        digest = (folder / DIGEST).read_text().split()[0]
        copy = _copy_files(folder, manifest, digest) if private else None
        try:
            if copy is None:
                _verify(folder, manifest.files, folder)
            else:
                manifest = read_manifest(copy.folder)
            files = folder if copy is None else copy.folder
            return cls(
                folder,
                files,
                digest,
                manifest,
                FittedSchema.load(files / SCHEMA),
                EntityTable.load(files / USERS),
                EntityTable.load(files / ITEMS),
                DiskStore.open(files / HISTORY) if f"{HISTORY}/segment.json" in manifest.files else None,
                msgspec.json.decode((files / GOLDEN).read_bytes(), type=list[GoldenRequest]),
                copy,
            )
        except BaseException:
            if copy is not None:
                copy.close()
            raise


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest and verify its digest.

    Raises:
        BundleError: if the folder is not a bundle, its manifest was altered, or it has another format.
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
        fields = msgspec.json.decode(content, type=dict[str, Any])
        format_name = fields.get("format")
        if format_name in FORMER_FORMATS:
            fields["programs"] = _describe_former_program(fields)
        elif format_name != FORMAT:
            raise BundleError(str(folder), f"format {format_name!r}", FORMAT, "export it again with this version")
        manifest = msgspec.convert(fields, Manifest)
        programs = {name: _rename_inputs(program) for name, program in manifest.programs.items()}
        return msgspec.structs.replace(manifest, programs=programs)
    except msgspec.DecodeError as error:
        raise BundleError(str(folder / MANIFEST), f"not a manifest ({error})", FORMAT, EXPORT_AGAIN) from None


def _describe_former_program(fields: dict[str, Any]) -> dict[str, Any]:
    """Describe the only program of a bundle of a former format, whose inputs are in the manifest itself."""
    is_encoder = fields.get("kind") == ENCODER
    output = {"name": TOKEN_OUTPUT if is_encoder else OUTPUT, "datatype": "FP32", "shape": [-1, -1][: 1 + is_encoder]}
    program = {"file": PROGRAM, "inputs": fields.get("inputs"), "outputs": [output]}
    return {ENCODE if is_encoder else SCORE: program}


def _rename_inputs(program: ProgramFacts) -> ProgramFacts:
    inputs = [msgspec.structs.replace(entry, name=rename_input(entry.name)) for entry in program.inputs]
    return msgspec.structs.replace(program, inputs=inputs)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and its digest."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST).write_bytes(content)
    (folder / DIGEST).write_bytes(format_digest(content))


def format_digest(manifest: bytes) -> bytes:
    """Return the content of ``manifest.sha256``."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def collect_file_facts(folder: Path) -> dict[str, FileFacts]:
    """Return size and SHA-256 of every file of a bundle except the manifest and its digest."""
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


def _copy_files(folder: Path, manifest: Manifest, digest: str) -> PrivateCopy:
    """Return a verified private copy. An existing one of the same digest is used without reading the folder's files."""
    from longrec.exporting.private_copies import open_private_copy  # needs file locks, which only servers need

    def verify(copy: Path, shown: Path) -> None:
        try:
            _verify(copy, manifest.files, shown)
        except BundleError as error:
            do = "stop the servers that use this copy" if shown == copy else error.do
            raise BundleError(error.where, error.found, error.expected, do) from None
        content = (copy / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest or (copy / DIGEST).read_bytes() != format_digest(content):
            raise BundleError(
                str(shown), "another bundle took its place while it was copied", "one bundle", "open it again"
            )

    _check_files(folder, manifest.files, folder)
    sizes = {name: facts.bytes for name, facts in manifest.files.items()}
    sizes |= {name: (folder / name).stat().st_size for name in (MANIFEST, DIGEST)}
    return open_private_copy(folder, digest, sizes, verify)


def _verify(folder: Path, expected: dict[str, FileFacts], shown: Path) -> None:
    """Check that a folder has the expected files.

    Args:
        shown: folder to name in errors.
    """
    _check_files(folder, expected, shown)
    for name, facts in expected.items():
        if compute_sha256(folder / name) != facts.sha256:
            raise BundleError(
                str(shown / name), "its SHA-256 is not the manifest's", "the bytes that were exported", EXPORT_AGAIN
            )


def _check_files(folder: Path, expected: dict[str, FileFacts], shown: Path) -> None:
    """Check names, kinds and sizes of the files of a folder."""
    paths = _list_files(folder)
    if missing := sorted(set(expected) - set(paths)):
        raise BundleError(str(shown / missing[0]), "no such file", "every file of the manifest", EXPORT_AGAIN)
    if extra := sorted(set(paths) - set(expected)):
        raise BundleError(
            str(shown / extra[0]), "a file the manifest does not name", "no other files in the folder", "remove it"
        )
    for name, facts in expected.items():
        path = paths[name]
        if path.is_symlink() or not path.is_file():
            raise BundleError(str(shown / name), "not a regular file", "a regular file inside the bundle", EXPORT_AGAIN)
        if (size := path.stat().st_size) != facts.bytes:
            raise BundleError(str(shown / name), f"{size} bytes", f"{facts.bytes} bytes", EXPORT_AGAIN)


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
