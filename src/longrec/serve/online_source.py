"""Online encoding of impressions as tokens, equal to the tokens that training would write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.bundle import ENCODER, Bundle
from longrec.exporting.golden import GoldenRequest
from longrec.exporting.inputs import CODES_OUTPUT, ENCODE
from longrec.exporting.runtime import open_programs
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve.live_events import LiveEvents
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import decode_request
from longrec.serve.request_time import parse_request_time
from longrec.store.token_info import TokenInfo

MAX_DRIFT = 1e-4
"""Largest relative difference from the golden tokens on this machine, ten times the tolerance of export."""


class OnlineSource:
    """Opened bundle of an encoder, for one thread.

    Args:
        bundle: output of ``longrec export`` for a folder of tokens.
        live: events since the bundle, for a source model that reads histories.

    Attributes:
        facts: source version and scale of its tokens.
        live: events since the bundle.

    Raises:
        BundleError: if the bundle is one of a ranker, or has pre-joined histories.
    """

    def __init__(self, bundle: Bundle, live: LiveEvents | None = None) -> None:
        facts = bundle.manifest.encoder
        if bundle.manifest.kind != ENCODER or facts is None:
            message = f"a bundle of a {bundle.manifest.kind}"
            do = "export the source of the tokens that it reads: longrec export tokens/v1 source.bundle"
            raise BundleError(str(bundle.path), message, "a bundle of a source", do)
        if any(entry.group.startswith("h.") for entry in bundle.manifest.inputs) and bundle.fitted.schema.prejoined:
            raise BundleError(
                str(bundle.path), "a source with pre-joined histories", "one whose bundle stores histories"
            )
        self.bundle, self.facts, self.live = bundle, facts, live
        self.program = open_programs(bundle.files, bundle.manifest.programs)[ENCODE]
        self.encoder = RequestEncoder(bundle, live=live)

    def matches(self, info: TokenInfo) -> bool:
        """Return True for a store with tokens of this source version on the same scale."""
        facts = self.facts
        if (info.width, info.slots) != (facts.width, facts.slots) or facts.version >= len(info.versions):
            return False
        version = info.versions[facts.version]
        own = info.source.get("run") == self.bundle.manifest.source.get("run")
        return own and (version.mean, version.std) == (facts.scale.mean, facts.scale.std)

    def supports_codec(self, codec: str) -> bool:
        """Return True if the ONNX model has the output that a codec stores."""
        return codec != "codes" or CODES_OUTPUT in self.program.outputs

    def encode(self, query: Query, candidates: Candidates, codec: str = "fp32") -> NDArray[Any]:
        """Encode candidates as tokens ``[C, W]`` on the scale of the store, or as codes.

        Raises:
            RequestError: if the impression cannot be encoded.
        """
        encoded = query.encode(self.encoder)
        items = self.encoder.encode_candidates(candidates, query, "item")
        inputs = {**encoded.inputs, **self.encoder.build_item_tensors(items, query.timestamp)}
        if codec == "codes":
            return self.program.run(inputs, CODES_OUTPUT).astype(np.uint8)
        return self.facts.scale.standardize(self.program.run(inputs))

    def check(self) -> float:
        """Replay the golden impressions and return the largest difference, as a share of the largest number.

        Raises:
            BundleError: if tokens differ from those of the exporter.
        """
        raw, worst = self.facts.scale.unstandardize, 0.0
        for number, (one, vectors) in enumerate(zip(self.bundle.golden, encode_golden(self, self.bundle.golden))):
            expected = raw(one.expected)
            largest = max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(expected - raw(vectors)).max()) / largest
            if not difference <= MAX_DRIFT:
                raise BundleError(
                    f"{self.bundle.path}: golden request {number}",
                    f"tokens differ by {difference:.2g} on this machine",
                    f"at most {MAX_DRIFT:g} of their largest number",
                    "compare the versions of onnxruntime here and where it was exported",
                )
            worst = max(worst, difference)
        return worst

    def close(self) -> None:
        """Close the stores."""
        self.encoder.close()


def encode_golden(source: OnlineSource, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float32]]:
    """Encode every candidate of golden requests."""
    schema = source.bundle.fitted.schema
    time, requests = schema.time, [decode_request(orjson.dumps(one.request), schema) for one in golden]
    return [
        source.encode(request.build_query(parse_request_time(request.at, time, 0)), request.build_candidates())
        for request in requests
    ]


def replay(folder: Path, golden: Sequence[GoldenRequest]) -> list[NDArray[np.float32]]:
    """Encode golden requests with a bundle of an encoder: the ``replay`` function of export."""
    source = OnlineSource(Bundle.open(folder))
    try:
        return encode_golden(source, golden)
    finally:
        source.close()
