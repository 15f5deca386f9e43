"""What a pipeline must know of a bundle before it is opened: kind, schema and types of keys, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.errors import BundleError
from longrec.exporting.bundle import EXPORT_AGAIN, ITEMS, SCHEMA, USERS, Manifest, read_manifest
from longrec.features.fitted_schema import FittedSchema


@dataclass(frozen=True)
class BundleHeader:
    """Facts of a bundle.

    Attributes:
        path: its folder.
        manifest: the verified manifest.
        fitted: the fitted schema.
        users, items: ``integers`` or ``text``: types of keys.
    """

    path: Path
    manifest: Manifest
    fitted: FittedSchema
    users: str
    items: str

    @property
    def time(self) -> str:
        """Timestamps of the bundle: ``timestamps``, ``steps`` or ``none``."""
        time = self.fitted.schema.time
        return "none" if time is None else "steps" if time.unit == "step" else "timestamps"

    @classmethod
    def read(cls, path: Path) -> BundleHeader:
        """Read the facts of a bundle. Other files are not verified.

        Raises:
            BundleError: if there is no bundle, or one of these files is missing.
        """
        manifest = read_manifest(path)
        try:
            kinds = [_get_key_type(path / table / "keys.parquet") for table in (USERS, ITEMS)]
            return cls(path, manifest, FittedSchema.load(path / SCHEMA), *kinds)
        except FileNotFoundError as error:
            raise BundleError(
                str(error.filename or path), "no such file", "every file of the manifest", EXPORT_AGAIN
            ) from None


def _get_key_type(path: Path) -> str:
    return "integers" if pa.types.is_integer(pq.read_schema(path).field("key").type) else "text"
