from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import numpy as np
import pipelines
import pytest
from in_process import InProcess
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from longrec.serve.app import App
from longrec.serve.prometheus import CANDIDATES, REASONS, SECONDS, STATUSES, ServerMetrics
from longrec.serve.service import Service

Samples = dict[str, float]


def read_page(metrics: ServerMetrics) -> Samples:
    """Parse a page: values by name and labels, as ``name{label=value,...}``."""
    content, media_type = metrics.render("m", "1")
    assert media_type.startswith("text/plain; version=0.0.4")
    samples: Samples = {}
    for family in parser.text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in samples
            samples[name] = sample.value
    return samples


def test_a_histogram_is_cumulative_and_its_edges_belong_below() -> None:
    metrics = ServerMetrics()
    for seconds in (0.0005, 0.0006, 99.0):
        metrics.count_request("/rank", 200, seconds)
    for count in (1, 2, 100_000):
        metrics.count_ranking(count)
    page = read_page(metrics)
    assert page["longrec_request_seconds_bucket{le=0.0005,route=/rank}"] == 1
    assert page["longrec_request_seconds_bucket{le=0.001,route=/rank}"] == 2
    assert page[f"longrec_request_seconds_bucket{{le={SECONDS[-1]:g},route=/rank}}"] == 2
    assert page["longrec_request_seconds_bucket{le=+Inf,route=/rank}"] == 3
    assert page["longrec_request_seconds_sum{route=/rank}"] == pytest.approx(99.0011)
    assert page["longrec_request_seconds_count{route=/rank}"] == 3
    assert page["longrec_candidates_bucket{le=1}"] == 1
    assert page[f"longrec_candidates_bucket{{le={CANDIDATES[-1]:g}}}"] == 3
    assert page["longrec_candidates_sum"] == 100_003
    assert page["longrec_requests_total{route=/rank,status=200}"] == 3
    assert page["longrec_model_info{model=m,version=1}"] == 1
    assert not [name for name in page if "route=/recommend" in name]  # never counted


def test_a_status_without_a_counter_is_counted_with_its_kind() -> None:
    metrics = ServerMetrics()
    for status in (204, 418, 507, *STATUSES):
        metrics.count_request("other", status, 0.0)
    page = read_page(metrics)
    counts = [page[f"longrec_requests_total{{route=other,status={status}}}"] for status in STATUSES]
    assert counts == [2 if status in (200, 400, 500) else 1 for status in STATUSES]


def test_requests_that_wait_or_are_turned_away() -> None:
    metrics = ServerMetrics()
    for reason in (*REASONS, "queue"):
        metrics.count_shed("/rank", reason)
    metrics.count_shed("other", "connections")
    metrics.count_wait(0.002)
    metrics.set_queue(7)
    metrics.set_queue(3)
    page = read_page(metrics)
    counts = {name: value for name, value in page.items() if name.startswith("longrec_shed_total")}
    assert counts == {
        "longrec_shed_total{reason=queue,route=/rank}": 2,
        "longrec_shed_total{reason=deadline,route=/rank}": 1,
        "longrec_shed_total{reason=gone,route=/rank}": 1,
        "longrec_shed_total{reason=connections,route=/rank}": 1,
        "longrec_shed_total{reason=bodies,route=/rank}": 1,
        "longrec_shed_total{reason=store,route=/rank}": 1,
        "longrec_shed_total{reason=connections,route=other}": 1,
    }
    assert page["longrec_queue_length"] == 3
    assert page["longrec_queue_wait_seconds_bucket{le=0.0015}"] == 0
    assert page["longrec_queue_wait_seconds_bucket{le=0.002}"] == 1
    assert page["longrec_queue_wait_seconds_sum"] == 0.002


def test_workers_are_added_up_and_the_dead_are_not_forgotten(tmp_path: Path) -> None:
    own = ServerMetrics(tmp_path, ["merge", "rank"])
    own.count_request("/rank", 200, 0.1)
    own.count_stages({"merge": 0.25, "rank": 0.5}, [])
    own.set_queue(2)
    (file,) = tmp_path.glob("*.counts")
    gone = ServerMetrics(stages=["merge", "rank"])
    gone.count_request("/rank", 200, 0.1)
    gone.count_stages({"merge": 0.5, "rank": 0.0}, ["rank"])
    gone.set_queue(9)
    gone._cells.tofile(tmp_path / "1.counts")
    (tmp_path / "2.counts").write_bytes(b"")
    assert file.stat().st_size == gone._cells.nbytes
    page = read_page(own)
    assert page["longrec_requests_total{route=/rank,status=200}"] == 2
    assert page["longrec_stage_seconds_sum{stage=merge}"] == 0.75
    assert page["longrec_stage_seconds_bucket{le=0.25,stage=merge}"] == 1
    assert page["longrec_stage_seconds_count{stage=merge}"] == 2
    assert page["longrec_stage_seconds_count{stage=rank}"] == 1
    assert page["longrec_fallbacks_total{stage=merge}"] == 0
    assert page["longrec_fallbacks_total{stage=rank}"] == 1
    assert page["longrec_queue_length"] == 2  # a dead worker has no queue


def test_a_worker_with_the_process_id_of_a_dead_one_counts_beside_it(tmp_path: Path) -> None:
    first = ServerMetrics(tmp_path)
    first.count_request("/rank", 200, 0.1)
    first.set_queue(4)
    second = ServerMetrics(tmp_path)
    second.set_queue(1)
    assert read_page(second)["longrec_queue_length"] == 5
    del first
    gc.collect()
    page = read_page(second)
    assert (page["longrec_queue_length"], page["longrec_requests_total{route=/rank,status=200}"]) == (1, 1)


def test_the_format_is_what_the_scraper_accepts() -> None:
    metrics = ServerMetrics(stages=['a"b\\c'])
    metrics.count_request("/rank", 200, 0.1)
    metrics.count_ranking(3)
    content, media_type = metrics.render("m", "1", "application/openmetrics-text; version=1.0.0, text/plain; q=0.5")
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    families = list(openmetrics_parser.text_string_to_metric_families(content.decode()))
    assert 'a"b\\c' in {sample.labels.get("stage") for family in families for sample in family.samples}
    for accept in ("", "*/*", "text/html", "text/plain; version=x", "application/openmetrics-text; version=;"):
        content, media_type = metrics.render("m", "1", accept)
        kind = "openmetrics" if "openmetrics" in accept else "text/plain; version=0.0.4"
        assert kind in media_type, accept
        assert b"longrec_model_info" in content


def test_the_stages_of_a_pipeline_are_counted(tmp_path: Path) -> None:
    rank = {"bundle": pipelines.bundles()["din"], "count": 5, "deadline_ms": 1e-6}
    with contextlib.ExitStack() as closing:
        service = closing.enter_context(contextlib.closing(Service(pipelines.write(tmp_path, rank=rank, rerank=None))))
        app = App(service)
        http = closing.enter_context(InProcess(app))
        for _ in range(2):
            assert http.post("/recommend", pipelines.request()).status == 200
        request = pipelines.request()
        context = request["context"].keys() & service.pipeline.models["rank.bundle"].encoder.context  # type: ignore[union-attr]
        body = {
            "user": request["user"],
            "candidates": ["i1"],
            "context": {key: request["context"][key] for key in context},
        }
        assert http.post("/rank", body).status == 200
        page = read_page(app.metrics)
    stages = ["recall.mean", "recall.three", "merge", "rank", "top"]
    assert [page[f"longrec_fallbacks_total{{stage={name}}}"] for name in stages] == [0, 0, 0, 2, 0]
    assert [page[f"longrec_stage_seconds_count{{stage={name}}}"] for name in stages] == [2, 2, 2, 1, 2]
    assert all(page[f"longrec_stage_seconds_sum{{stage={name}}}"] > 0 for name in stages)
    assert np.isfinite(list(page.values())).all()
