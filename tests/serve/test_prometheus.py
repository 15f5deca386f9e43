from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from longrec.serve.prometheus import CANDIDATES, SECONDS, ServerMetrics


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
    own = ServerMetrics(tmp_path)
    own.count_request("/rank", 200, 0.1)
    size = len(np.fromfile(tmp_path / f"{os.getpid()}.counts", np.float64))
    gone = ServerMetrics()
    gone.count_request("/rank", 200, 0.1)
    gone._cells.tofile(tmp_path / "1.counts")
    (tmp_path / "2.counts").write_bytes(b"")
    assert size == len(gone._cells)
    assert 'longrec_requests_total{route="/rank",status="200"} 2' in own.render("m", "1")
