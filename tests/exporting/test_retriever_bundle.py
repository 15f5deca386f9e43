"""Export of runs of retrievers: golden requests follow from the log, and what cannot be served is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import retrievers
import shop
import token_shop
import torch

from longrec.data.log import Log
from longrec.errors import BundleError, RunError
from longrec.exporting.bundle import WEIGHTS, Bundle
from longrec.exporting.catalog import check_catalog
from longrec.exporting.runtime import open_programs
from longrec.exports import export_run, find_seen_items
from longrec.features.fields import AVAILABLE
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Schema
from longrec.models.core.kinds import Encoder
from longrec.store.segment import Segment


@pytest.fixture(scope="module", params=["at once", "late"])
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Return a log whose events are visible at once, or hours after their timestamps."""
    columns, schema = token_shop.events(), token_shop.SCHEMA
    if request.param == "late":
        late = np.random.default_rng(3).integers(0, 72, len(columns["at"])) * 3_600_000
        columns["seen_at"] = (np.array(columns["at"]) + late).tolist()
        schema = {**schema, "time": {**schema["time"], "available_at": "seen_at"}}
    return token_shop.open_log(tmp_path_factory.mktemp("log"), columns, schema)


def make_run(log: Log, model: Any) -> Any:
    config = SimpleNamespace(to_yaml=lambda: "", model={"name": "some"}, data=SimpleNamespace(items=None))
    return SimpleNamespace(log=lambda: log, model=lambda: model, name="r1", folder=Path("runs/r1"), config=config)


def test_a_run_is_exported_with_requests_of_its_log(log: Log, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = retrievers.MeanRetriever(retrievers.MeanConfig(interests=2), log.fields()).eval()
    manifest = export_run(make_run(log, model), tmp_path / "out", False)
    assert (manifest.kind, manifest.model, manifest.source["run"]) == ("retriever", "retrievers:MeanRetriever", "r1")
    assert manifest.counts["events"] == len(log)
    assert manifest.parity["golden"]["worst"] < 1e-5
    bundle = Bundle.open(tmp_path / "out")
    assert [one.request["exclude_seen"] for one in bundle.golden] == [True, False] * 3
    assert all(0 < len(one.items) == len(one.scores) <= 20 for one in bundle.golden)
    assert {len(one.items) for one in bundle.golden[1::2]} == {20}


def test_a_counting_rule_is_exported_with_the_items_of_all_events(log: Log, tmp_path: Path) -> None:
    model = retrievers.CountRetriever(retrievers.Strict(), log.fields(), "item_id").eval()
    model.counts[:] = torch.arange(len(model.counts)) // 3
    manifest = export_run(make_run(log, model), tmp_path / "out", False)
    assert list(manifest.programs) == ["score"]
    stored = Segment.open(tmp_path / "out" / "history")
    assert set(stored.columns) == {"item"} | ({AVAILABLE} if log.available is not None else set())
    assert len(stored) == len(log)


def test_seen_items_are_those_that_were_visible(log: Log) -> None:
    columns = token_shop.events()
    for user in (1, 5):
        key = log.users.key(user)
        for day in (2, 5, 9):
            now = token_shop.START + day * token_shop.DAY
            seen = [log.items.key(row) for row in find_seen_items(log, user, now).tolist()]
            rows_of_log = zip(columns["item_id"], columns["user_id"], columns["at"])
            expected = [item for item, owner, at in rows_of_log if owner == key and at < now]
            if log.available is None:
                assert sorted(seen) == sorted(expected)
            else:
                assert 0 < len(seen) < len(expected)


def test_what_cannot_be_served_is_refused(tmp_path: Path, steps: Any) -> None:
    content = steps.fitted.schema.model_dump(exclude_unset=True)
    content["features"]["place"]["side"] = "candidate"
    fitted = FittedSchema(Schema.model_validate(content), steps.fitted.encoders)
    with pytest.raises(BundleError, match="feature 'place': a column of the candidate; expected features of the item"):
        check_catalog(fitted)

    class Source(Encoder):
        def forward(self, batch: Any) -> Any: ...
        def encode(self, batch: Any) -> Any: ...

    run = make_run(None, Source(None, steps.fitted.fields()))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="a token source"):
        export_run(run, tmp_path / "out", False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the mappings of the process")
def test_shared_weights_are_mapped_and_not_copied() -> None:
    bundle = Bundle.open(retrievers.vectors().bundle)
    programs = open_programs(bundle.path, bundle.manifest.programs)
    assert len(programs) == 2
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert any(line.endswith(str(bundle.path / WEIGHTS)) for line in maps)


def test_a_bundle_of_a_ranker_has_one_program(full: shop.Shop) -> None:
    manifest = Bundle.open(full.bundle).manifest
    assert {name: program.file for name, program in manifest.programs.items()} == {"score": "program.onnx"}
    assert [(one.name, one.datatype, one.shape) for one in manifest.programs["score"].outputs] == [
        ("score", "FP32", [-1])
    ]
