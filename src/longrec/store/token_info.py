"""Description of a token store: widths, side columns and source versions. Also its token arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.features.column_delays import Delay
from longrec.features.token_columns import TokenSpec

FORMAT = "longrec-tokens-1"
CODECS = ("fp32", "fp16", "int8", "codes")
# Stored names of fields that have another name in code. Stores written before keep their format.
_STORED_NAMES = {"visibility_delay": "lag", "standardized": "standardised"}
_FIELD_NAMES = {stored: name for name, stored in _STORED_NAMES.items()}
_SIDE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\- ]*")


@dataclass(frozen=True)
class Version:
    """One state of the weights that wrote tokens.

    Attributes:
        number: counted from 0. Every token carries it.
        trained_before: the source model was trained only on data available before this timestamp. None: not recorded.
        published: timestamp from which it wrote tokens. None: not recorded.
        rows: number of impressions it was trained on.
        mean, std: ``[width]``: tokens are (vector - mean) / std of the source model's output. None: the output itself.
    """

    number: int
    trained_before: int | None = None
    published: int | None = None
    rows: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class TokenInfo:
    """Description of a token store.

    Attributes:
        width: numbers per token, all slots together.
        slots: number of equal blocks of a token.
        codec: encoding of vectors: fp32, fp16, int8, or codes of the codebooks of each version.
        sides: number of ids per side column. The id equal to that number means "not yet available".
        unit: unit of times: milliseconds or steps.
        keys: keys of users: their own integers, or 64-bit hashes of text.
        visibility_delay: delay after an impression from which its token can be read, in the unit of time.
        leak: reason why the tokens leak. Empty if they do not.
        column_delays: availability of each raw column by the schema of the source model, and so the earliest disclosure
            by its tokens (``features/column_delays.py``). None if it was not recorded.
        standardized: the vectors of each version have mean 0 and deviation 1.
        source: JSON description of the run that wrote them.
        versions: source versions, by number.
    """

    width: int
    slots: int = 1
    codec: str = "fp16"
    sides: Mapping[str, int] = field(default_factory=dict)
    unit: Literal["ms", "step"] | str = "ms"
    keys: Literal["int64", "text"] | str = "int64"
    visibility_delay: int = 0
    leak: str = ""
    column_delays: Mapping[str, Delay] | None = None
    standardized: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()

    def __post_init__(self) -> None:
        whole = self.width >= 1 and self.slots >= 1 and self.width % self.slots == 0
        faults = {
            f"{self.width} numbers in {self.slots} slots": ("slots of equal width", whole),
            f"codec {self.codec!r}": (", ".join(CODECS), self.codec in CODECS),
            f"times in {self.unit!r}": ("ms or step", self.unit in ("ms", "step")),
            f"users by {self.keys!r}": ("int64 or text", self.keys in ("int64", "text")),
            f"a visibility delay of {self.visibility_delay}": ("0 or more", self.visibility_delay >= 0),
        }
        for name, ids in self.sides.items():
            faults[f"side column {name!r} of {ids} ids"] = (
                "a plain name, ids from 1",
                bool(_SIDE.fullmatch(name)) and ids >= 1,
            )
        for index, version in enumerate(self.versions):
            check_version(version, index, self.width)
        for actual, (expected, good) in faults.items():
            if not good:
                raise StoreError("token store", actual, expected)

    def spec(self) -> TokenSpec:
        """Return the description of these tokens for a model."""
        count = len(self.versions)
        return TokenSpec(self.width, self.slots, dict(self.sides), count, count > 1 and not self.standardized)

    def with_version(self, version: Version) -> TokenInfo:
        """Return the description with one more version.

        Raises:
            StoreError: if the number is not the next one, or the mean or the deviation is invalid.
        """
        check_version(version, len(self.versions), self.width)
        return replace(self, versions=(*self.versions, version))

    def json(self) -> dict[str, Any]:
        """Return the attributes under which a store keeps this description."""
        content = to_stored_names(asdict(self))
        return {"format": FORMAT, **content, "versions": [asdict(version) for version in self.versions]}

    @classmethod
    def parse(cls, attributes: Mapping[str, Any], where: str) -> TokenInfo:
        """Parse the result of ``json``.

        Raises:
            StoreError: if the content is not that of a token store, or has another format version.
        """
        content = dict(attributes)
        if (form := content.pop("format", None)) != FORMAT:
            raise StoreError(where, f"format {form!r}", FORMAT, "give the location of a token store")
        try:
            content["versions"] = tuple(Version(**version) for version in content["versions"])
            return cls(**to_field_names(content))
        except (KeyError, TypeError) as error:
            raise StoreError(where, f"not readable ({error})", FORMAT, "write it again with this version") from None


@dataclass(frozen=True)
class Tokens:
    """Tokens of several users, concatenated, oldest first within a user.

    Attributes:
        offsets: int64 ``[users + 1]``. The tokens of user u are ``offsets[u]:offsets[u + 1]``, which may be empty.
        times: int64 ``[N]``: timestamps of the impressions.
        instance: int64 ``[N]``: ids of the impressions.
        visible: int64 ``[N]``: timestamps from which the tokens can be read.
        version: int32 ``[N]``: source versions that wrote them.
        vectors: float32 ``[N, width]``.
        sides: int32 ids ``[N]`` by side column.
        available_at: int64 ``[N]`` by side column: timestamps from which the ids are available.
    """

    offsets: NDArray[np.int64]
    times: NDArray[np.int64]
    instance: NDArray[np.int64]
    visible: NDArray[np.int64]
    version: NDArray[np.int32]
    vectors: NDArray[np.float32]
    sides: Mapping[str, NDArray[np.int32]]
    available_at: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.times)


def to_stored_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description under their stored names."""
    return {_STORED_NAMES.get(name, name): value for name, value in content.items()}


def to_field_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored content under the names of the fields."""
    return {_FIELD_NAMES.get(name, name): value for name, value in content.items()}


def check_version(version: Version, number: int, width: int) -> None:
    """Check a version against its expected number.

    Raises:
        StoreError: if the number is not that of the next version, or the mean or the deviation is invalid.
    """
    where = f"version {version.number}"
    if version.number != number or number >= 1 << 16:
        raise StoreError(where, f"number {version.number}", f"{number}, the next one (at most 65535)")
    if (version.mean is None) != (version.std is None):
        raise StoreError(where, "a mean without a deviation, or the reverse", "both or none")
    for name, values in (("mean", version.mean), ("std", version.std)):
        if values is not None and (len(values) != width or not np.isfinite(values).all()):
            raise StoreError(where, f"{name} of {len(values)} numbers", f"{width} finite numbers")
    if version.std is not None and min(version.std) <= 0:
        raise StoreError(where, f"a deviation of {min(version.std)}", "more than 0")
