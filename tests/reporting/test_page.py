from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.metrics import CalibrationCurve, Interval, compare
from longrec.reporting import RunView, write_page
from longrec.reporting.plots import (
    Series,
    bar,
    draw_calibration_chart,
    draw_interval_chart,
    draw_line_chart,
    draw_swatch,
    number,
    ticks,
)

EVIL = "<script>alert('1')</script>\"&"
CURVE = CalibrationCurve((0.1, 0.5, 0.8), (0.2, 0.5, 0.7), (10, 10, 9))


def view(name: str, **changes) -> RunView:
    content = {
        "name": name,
        "model": "din",
        "split": "test",
        "rows": 400,
        "users": 40,
        "positives": 200,
        "metrics": {"auc": Interval(0.7, 0.6, 0.8), "gauc": Interval.undefined(), "pcoc": Interval(1, 0.9, 1.1)},
        "seconds": 75.0,
        "curves": {
            ("train", "loss"): [(i / 10, 1 / (i + 1)) for i in range(1, 40)],
            ("valid", "auc"): [(1.0, 0.7), (2.0, 0.72), (3.0, 0.71)],
        },
        "config": f"model: {name}\n",
        "calibration": CURVE,
    }
    return RunView(**{**content, **changes})


def comparison(*names: str) -> dict:
    rng = np.random.default_rng(0)
    y, u = rng.integers(0, 2, 400), rng.integers(0, 40, 400)
    scores = {name: np.clip(0.3 + 0.1 * index * y + 0.3 * rng.random(400), 0, 1) for index, name in enumerate(names)}
    return compare(y, scores, u, n_resamples=20).to_dict()


def explanation(events: int = 14, weight: float = 0.1) -> dict:
    history = [
        {"name": f"Film {i} {EVIL}", "side": {"rating": EVIL}, "ago": f"{i} days", "weight": weight * i}
        for i in range(events)
    ]
    return {"user": EVIL, "when": EVIL, "candidate": EVIL, "score": 0.5, "label": 1.0, "events": history, "note": EVIL}


class Checker(HTMLParser):
    """Parser that records every tag and attribute, and fails on tags that do not close."""

    VOID = ("meta", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(path) -> Checker:
    """Check that the page is well nested, runs nothing and fetches nothing."""
    page = Checker()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    assert not {"script", "iframe", "img", "object", "embed"} & set(page.tags)
    for key, value in page.attributes:
        assert not key.startswith("on")
        if key in ("href", "src"):
            assert value == "data:,"
    style = re.search(r"<style>(.*)</style>", path.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    return page


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(source) for source in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_every_argument_is_escaped(tmp_path):
    names = ["plain", f"b{EVIL}"]
    runs = [view(name, model=EVIL, config=EVIL) for name in names]
    path = write_page(
        tmp_path / "p.html", EVIL, {EVIL: EVIL}, runs, comparison(*names), explanation(), [f"`{EVIL}` {EVIL}"]
    )
    page = check(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert page.text.count("<script>alert('1')</script>") > 20
    assert len(svgs(path.read_text(encoding="utf-8"))) > 15  # each parses as XML


def test_the_page_says_what_differs_and_by_how_much(tmp_path):
    compared = comparison("deepfm", "din")
    page = check(
        write_page(
            tmp_path / "p.html",
            "T",
            {"Data": "small"},
            [view("deepfm"), view("din")],
            compared,
            None,
            ["a `b`", "longrec models"],
        )
    )
    auc = compared["differences"]["din"]["auc"]
    assert auc["verdict"] == "better"
    assert f"din against deepfm: better on AUC ({auc['value']:+.4f})" in page.text
    assert f"{auc['value']:+.4f} [{auc['low']:+.4f}, {auc['high']:+.4f}]" in page.text
    assert f"{compared['runs']['din']['auc']['value']:.4f}" in page.text
    for head in ("Metrics", "Differences to deepfm", "Learning", "Calibration", "Settings", "How to go on"):
        assert head in page.text
    assert "Where a sample" not in page.text
    assert "20 resamples of whole users" in page.text
    assert f"GAUC leaves out {compared['gauc_users_skipped']}" in page.text
    assert page.tags.count("code") == 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_any_number_of_runs_with_and_without_a_comparison(tmp_path, count):
    names = [f"run{i}" for i in range(count)]
    runs = [view(name) for name in names]
    page = check(write_page(tmp_path / "a.html", "T", {}, runs))
    assert page.text.count("0.7000") >= count
    assert "undefined" in page.text
    check(write_page(tmp_path / "b.html", "T", {}, runs, comparison(*names)))


def test_a_bare_run_makes_a_page_too(tmp_path):
    bare = view("lr", metrics={}, curves={}, config="", calibration=None, seconds=None)
    page = check(write_page(tmp_path / "deep" / "p.html", "T", {}, [bare]))
    assert "Learning" not in page.text
    assert "Calibration" not in page.text


def test_the_sample_shows_its_heaviest_events_first_and_folds_the_rest(tmp_path):
    path = write_page(tmp_path / "p.html", "T", {}, [view("din")], None, explanation(events=14))
    text = check(path).text
    assert text.index("Film 13") < text.index("Film 12") < text.index("4 more events") < text.index("Film 3 ")
    assert "The 3 heaviest carry 40% of the whole weight; equal shares would be 21%" in text  # 13 + 12 + 11 of 91
    text = check(write_page(path, "T", {}, [view("din")], None, explanation(events=5, weight=-0.1))).text
    assert "heaviest carry" not in text  # raw weights may be negative: shares would mean nothing
    assert "-0.400" in text
    text = check(write_page(path, "T", {}, [view("din")], None, {**explanation(events=0), "label": None})).text
    assert "no history" in text
    assert "not known" in text


def test_charts_are_xml_and_carry_their_values_for_hovering():
    points = [(i / 50, 0.5 + 1 / (i + 3)) for i in range(500)]
    line = draw_line_chart([Series(EVIL, 0, points), Series("b", 7, [(1.0, 0.6)])], "epoch", "loss", "lowest")
    dots = draw_interval_chart(
        [(EVIL, 0, Interval(0.1, 0.0, 0.2)), ("u", 1, Interval.undefined())], "AUC", 0.0, signed=True
    )
    for chart in (line, dots, draw_calibration_chart(CURVE, EVIL, 1), bar(-0.3, -0.5, 1.0, EVIL)):
        (root,) = svgs(chart)
        titles = [node.text or "" for node in root.iter() if node.tag.endswith("title")]
        assert any(EVIL in title for title in titles)
    assert "+0.1000 [+0.0000, +0.2000]" in dots
    assert len(re.findall("<polyline", line)) == 2
    assert max(len(path.split()) for path in re.findall(r'points="([^"]*)"', line)) <= 120
    assert draw_line_chart([], "x", "y") == draw_interval_chart([], "x") == ""


def test_bars_share_a_scale_and_start_at_zero():
    def rect(chart: str) -> tuple[float, float]:
        node = next(node for node in svgs(chart)[0].iter() if node.get("class") in ("up", "down"))
        return float(node.get("x")[:-1]), float(node.get("width")[:-1])

    assert rect(bar(0.5, 0.0, 1.0)) == (0.0, 50.0)
    assert rect(bar(0.5, -0.5, 0.5)) == (50.0, 50.0)
    assert rect(bar(-0.25, -0.5, 0.5)) == (25.0, 25.0)
    assert rect(bar(0.0, 0.0, 0.0)) == (0.0, 0.0)


def test_runs_differ_without_color():
    marks = [re.sub(r"s\d", "", draw_swatch(slot)) for slot in range(4)]
    assert len(set(marks)) == 4
    assert len({draw_swatch(slot) for slot in range(12)}) == 12


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_are_round_rising_and_cover_the_data(low, spread, about):
    values = ticks(low, low + spread, about)
    steps = np.diff(values)
    assert 2 <= len(values) <= about + 3
    assert (steps > 0).all()
    slack = 1e-6 * max(steps)
    assert values[0] <= low + slack
    assert values[-1] >= low + spread - slack
    labels = [number(tick, values[1] - values[0]) for tick in values]
    assert len(set(labels)) == len(labels)


def test_warnings_precede_the_numbers_and_name_their_runs(tmp_path):
    both, one = f"the split is odd {EVIL}", "PCOC on test is 45"
    runs = [view("lr", warnings=(both, one)), view("din", warnings=(both,))]
    path = write_page(tmp_path / "p.html", "x", {}, runs, comparison("lr", "din"))
    page = check(path)
    text = page.text
    assert text.index("Warnings") < text.index("Metrics on test")
    assert text.count(both) == 1
    assert f"lr: {one}" in text
    assert f"lr and din: {both}" not in text
    quiet = check(write_page(tmp_path / "q.html", "x", {}, [view("lr")]))
    assert "Warnings" not in quiet.text
    assert "Calibration on test" in quiet.text
    later = {**comparison("lr", "din"), "split": "valid", "warnings": ["din: AUC on valid is 0.4"]}
    assert "din: AUC on valid is 0.4" in check(write_page(tmp_path / "r.html", "x", {}, runs, later)).text
