"""What is known of a token store besides its tokens: widths, side columns, versions of the source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.features.column_delays import Delay
from longrec.features.tokens import TokenSpec

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
        number: counted from 0; every token carries it.
        trained_before: the source had learned only what was known before this moment; None: not told.
        published: the moment from which on it wrote; None: not told.
        rows: impressions it was trained on.
        mean, std: ``[width]``: tokens are delivered as (vector - mean) / std of what the source made; None: as it was.
    """

    number: int
    trained_before: int | None = None
    published: int | None = None
    rows: int = 0
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class TokenInfo:
    """What a token store holds.

    Attributes:
        width: numbers of a token as it is delivered, all slots together.
        slots: equal parts it falls into.
        codec: how vectors lie: fp32, fp16, int8, or codes of the codebooks of each version.
        sides: side columns and how many ids each has; the id of that number means "not yet known".
        unit: what times count: milliseconds or steps.
        keys: what users are known by: their own integers, or 64-bit hashes of text.
        lag: how long after an impression its token can be read, in the unit of time.
        leak: why the tokens know more than they should; empty where they do not.
        column_delays: when the value of each raw column was available by the schema of the source, and so the earliest
            its tokens can disclose it (``features/column_delays.py``); None where this was not recorded.
        standardised: the vectors of each version were brought to mean 0, deviation 1.
        source: about the run that wrote them, as JSON.
        versions: of the source, by number.
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
            f"{self.width} numbers in {self.slots} slots": ("equal parts", whole),
            f"codec {self.codec!r}": (", ".join(CODECS), self.codec in CODECS),
            f"times in {self.unit!r}": ("ms or step", self.unit in ("ms", "step")),
            f"users by {self.keys!r}": ("int64 or text", self.keys in ("int64", "text")),
            f"a lag of {self.visibility_delay}": ("0 or more", self.visibility_delay >= 0),
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
        """What a model gets to know of these tokens."""
        count = len(self.versions)
        return TokenSpec(self.width, self.slots, dict(self.sides), count, count > 1 and not self.standardized)

    def with_version(self, version: Version) -> TokenInfo:
        """The same store, one version later.

        Raises:
            StoreError: not the next number, or a mean or deviation of another width.
        """
        check_version(version, len(self.versions), self.width)
        return replace(self, versions=(*self.versions, version))

    def json(self) -> dict[str, Any]:
        """As a store's attributes keep it."""
        content = to_stored_names(asdict(self))
        return {"format": FORMAT, **content, "versions": [asdict(version) for version in self.versions]}

    @classmethod
    def parse(cls, attributes: Mapping[str, Any], where: str) -> TokenInfo:
        """What ``json`` wrote.

        Raises:
            StoreError: no token store, or one of another version.
        """
        content = dict(attributes)
        if (form := content.pop("format", None)) != FORMAT:
            raise StoreError(where, f"format {form!r}", FORMAT, "give the place of a token store")
        try:
            content["versions"] = tuple(Version(**version) for version in content["versions"])
            return cls(**to_field_names(content))
        except (KeyError, TypeError) as error:
            raise StoreError(where, f"not readable ({error})", FORMAT, "write it again with this version") from None


@dataclass(frozen=True)
class Tokens:
    """Tokens of several users, end to end, oldest first within a user.

    Attributes:
        offsets: int64 ``[users + 1]``; user u owns ``offsets[u]:offsets[u + 1]``, which may be empty.
        times: int64 ``[N]``: moments of the impressions.
        instance: int64 ``[N]``: names of the impressions.
        visible: int64 ``[N]``: from when on a token could be read.
        version: int32 ``[N]``: which version of the source wrote it.
        vectors: float32 ``[N, width]``.
        sides: int32 ids ``[N]`` by side column.
        known: int64 ``[N]`` by side column: when the id became known.
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
    """Hold a version to its place.

    Raises:
        StoreError: another number, or a mean or deviation that is none.
    """
    where = f"version {version.number}"
    if version.number != number or number >= 1 << 16:
        raise StoreError(where, f"number {version.number}", f"{number}, the next one (at most 65535)")
    if (version.mean is None) != (version.std is None):
        raise StoreError(where, "a mean without a deviation, or the other way round", "both or none")
    for name, values in (("mean", version.mean), ("std", version.std)):
        if values is not None and (len(values) != width or not np.isfinite(values).all()):
            raise StoreError(where, f"{name} of {len(values)} numbers", f"{width} finite numbers")
    if version.std is not None and min(version.std) <= 0:
        raise StoreError(where, f"a deviation of {min(version.std)}", "more than 0")
