"""An opened bundle as stages use it: its programs and the encoder of its requests."""

from __future__ import annotations

from longrec.exporting.bundle import Bundle
from longrec.exporting.runtime import open_programs
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.request_encoder import RequestEncoder


class OpenModel:
    """Bundle with its programs and the encoder of its requests, for use by one thread.

    Args:
        bundle: the opened bundle.
        encoder: encoder of its requests. Default: one that reads the copies of all stores in the bundle.
        pristine: leave out the changes of the catalog since the bundle, and search exactly.

    Attributes:
        catalog: its items, with the changes since the bundle.
    """

    def __init__(self, bundle: Bundle, encoder: RequestEncoder | None = None, *, pristine: bool = False) -> None:
        self.bundle, self.name = bundle, bundle.manifest.model
        self.programs = open_programs(bundle.files, bundle.manifest.programs)
        self.encoder = RequestEncoder(bundle) if encoder is None else encoder
        self.catalog = LiveCatalog(bundle, self.programs, self.encoder.use_items, pristine)

    def close(self) -> None:
        """Close the stores."""
        self.encoder.close()
