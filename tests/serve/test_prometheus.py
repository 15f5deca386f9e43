from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import orjson
import pipelines

from longrec.serve.app import App
from longrec.serve.prometheus import CANDIDATES, SECONDS, ServerMetrics
from longrec.serve.service import Service


def test_a_histogram_is_cumulative_and_its_edges_belong_below() -> None:
    metrics = ServerMetrics()
    for seconds in (0.0005, 0.0006, 99.0):
        metrics.count_request("/rank", 200, seconds)
    for count in (1, 2, 100_000):
        metrics.count_ranking(count)
    lines = metrics.render("m", "1").splitlines()
    assert 'longrec_request_seconds_bucket{route="/rank",le="0.0005"} 1' in lines
    assert 'longrec_request_seconds_bucket{route="/rank",le="0.001"} 2' in lines
    assert f'longrec_request_seconds_bucket{{route="/rank",le="{SECONDS[-1]:g}"}} 2' in lines
    assert 'longrec_request_seconds_bucket{route="/rank",le="+Inf"} 3' in lines
    assert 'longrec_request_seconds_sum{route="/rank"} 99.0011' in lines
    assert 'longrec_request_seconds_count{route="/rank"} 3' in lines
    assert 'longrec_candidates_bucket{le="1"} 1' in lines
    assert f'longrec_candidates_bucket{{le="{CANDIDATES[-1]:g}"}} 3' in lines
    assert "longrec_candidates_sum 100003" in lines
    assert 'longrec_requests_total{route="/rank",status="200"} 3' in lines


def test_a_status_without_a_counter_is_counted_with_its_kind() -> None:
    metrics = ServerMetrics()
    for status in (204, 418, 507):
        metrics.count_request("other", status, 0.0)
    text = metrics.render("m", "1")
    for status in (200, 400, 500):
        assert f'longrec_requests_total{{route="other",status="{status}"}} 1' in text


def test_workers_are_added_up_and_the_dead_are_not_forgotten(tmp_path: Path) -> None:
    own = ServerMetrics(tmp_path, ["merge", "rank"])
    own.count_request("/rank", 200, 0.1)
    own.count_stages({"merge": 0.25, "rank": 0.5}, [])
    size = len(np.fromfile(tmp_path / f"{os.getpid()}.counts", np.float64))
    gone = ServerMetrics(stages=["merge", "rank"])
    gone.count_request("/rank", 200, 0.1)
    gone.count_stages({"merge": 0.5, "rank": 0.0}, ["rank"])
    gone._cells.tofile(tmp_path / "1.counts")
    (tmp_path / "2.counts").write_bytes(b"")
    assert size == len(gone._cells)
    lines = own.render("m", "1").splitlines()
    assert 'longrec_requests_total{route="/rank",status="200"} 2' in lines
    assert 'longrec_stage_seconds_sum{stage="merge"} 0.75' in lines
    assert 'longrec_stage_seconds_bucket{stage="merge",le="0.25"} 1' in lines
    assert 'longrec_stage_seconds_count{stage="merge"} 2' in lines
    assert 'longrec_stage_seconds_count{stage="rank"} 1' in lines
    assert 'longrec_fallbacks_total{stage="merge"} 0' in lines
    assert 'longrec_fallbacks_total{stage="rank"} 1' in lines


def test_the_stages_of_a_pipeline_are_counted(tmp_path: Path) -> None:
    rank = {"bundle": pipelines.bundles()["din"], "count": 5, "deadline_ms": 1e-6}
    with contextlib.closing(Service(pipelines.write(tmp_path, rank=rank, rerank=None))) as service:
        app = App(service)
        for _ in range(2):
            app._answer("/recommend", orjson.dumps(pipelines.request()))
        request = pipelines.request()
        context = request["context"].keys() & service.pipeline.models["rank.bundle"].encoder.context  # type: ignore[union-attr]
        body = {
            "user": request["user"],
            "candidates": ["i1"],
            "context": {key: request["context"][key] for key in context},
        }
        app._answer("/rank", orjson.dumps(body))
        lines = app.metrics.render("films", "1").splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if "stage=" in line and "_bucket" not in line)
    stages = ["recall.mean", "recall.three", "merge", "rank", "top"]
    assert [counts[f'longrec_fallbacks_total{{stage="{name}"}}'] for name in stages] == ["0", "0", "0", "2", "0"]
    assert [counts[f'longrec_stage_seconds_count{{stage="{name}"}}'] for name in stages] == ["2", "2", "2", "1", "2"]
    assert all(float(counts[f'longrec_stage_seconds_sum{{stage="{name}"}}']) > 0 for name in stages)
