from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.metrics import CalibrationCurve, Interval, compare
from longrec.reporting import Page, RunView, write_page
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
from longrec.reporting.run import SegmentView

EVIL = "<script>alert('1')</script>\"&"
FACTS = {
    "events": 1_000,
    "users": 50,
    "items": 20,
    "first": 0,
    "last": 99,
    "tied": 0.25,
    "repeated": 3,
    "splits": {
        name: {"rows": rows, "positives": 90, "users": 40, "items": 9, "new_users": 0.5, "new_items": 0.0,
               "first": 0, "last": 9}
        for name, rows in (("train", 900), ("valid", 0), ("test", 100))
    },
    "histories": {"seen": {"max_length": 9, "mean": 4.5, "p10": 0, "p50": 4, "p90": 9, "full": 0.1,
                           "empty": {"train": 0.1, "test": 0.0}}},
    "features": {"page": {"kind": "id", "side": "context", "nulls": {"train": 0.0}, "distinct": 2, "top": "home",
                          "top_share": 0.75, "unseen": {"train": 0.0, "test": 0.1}, "low": None, "high": None}},
    "warnings": ["feature page: odd"],
}  # fmt: skip
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
        "calibrations": {"": CURVE},
    }
    return RunView(**{**content, **changes})


def comparison(*names: str) -> dict:
    rng = np.random.default_rng(0)
    y, u = rng.integers(0, 2, 400), rng.integers(0, 40, 400)
    scores = {name: np.clip(0.3 + 0.1 * index * y + 0.3 * rng.random(400), 0, 1) for index, name in enumerate(names)}
    return compare(y, scores, u, n_resamples=20).to_dict()


def sample(events: int = 14, weight: float | None = 0.1, **changes) -> dict:
    history = [
        {
            "name": f"Film {i} {EVIL}",
            "side": {"rating": EVIL},
            "ago": i * 86_400_000,
            "weight": None if weight is None else weight * i,
        }
        for i in range(events)
    ]
    facts = {"User": EVIL, "Candidate": EVIL, "Score": "0.5"}
    return {"title": EVIL, "facts": facts, "histories": {EVIL: history}, "step": False, **changes}


def write(path, runs, compared=None, title="T", tiles=None, **content):
    return write_page(path, Page(title, tiles or {}, runs, comparison=compared, **content))


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
    segments = (SegmentView(EVIL, EVIL, 30, 10, {"auc": Interval(0.7, 0.6, 0.8)}),)
    features, recommended = {EVIL: EVIL}, [(EVIL, 0.25)]
    samples = (sample(features=features, recommended=recommended), sample(weight=None))
    origin = {"command": EVIL, "started": EVIL, "packages": {"torch": EVIL}, "git": {"revision": EVIL}}
    extra = {"segments": segments, "samples": samples, "environment": origin}
    runs = [view(name, model=EVIL, config=EVIL, calibrations={EVIL: CURVE}, **extra) for name in names]
    facts = FACTS | {"warnings": [EVIL], "features": {EVIL: FACTS["features"]["page"] | {"top": EVIL}}}
    path = write(
        tmp_path / "p.html",
        runs,
        comparison(*names),
        EVIL,
        {EVIL: EVIL},
        references=[view(EVIL, is_reference=True)],
        facts={EVIL: facts, "other": facts},
        warnings=[f"{EVIL}!"],
        next_steps=[f"`{EVIL}` {EVIL}"],
    )
    page = check(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    assert page.text.count("<script>alert('1')</script>") > 60
    assert len(svgs(path.read_text(encoding="utf-8"))) > 15  # each parses as XML


def test_the_page_says_what_differs_and_by_how_much(tmp_path):
    compared = comparison("deepfm", "din", "item rate")
    rate = view("item rate", model="the rate of the item", is_reference=True, curves={}, config="", calibrations={})
    runs = [view("deepfm"), view("din")]
    steps = ["a `b`", "longrec models"]
    path = write(tmp_path / "p.html", runs, compared, tiles={"Data": "small"}, references=[rate], next_steps=steps)
    page = check(path)
    auc = compared["differences"]["din"]["auc"]
    assert auc["verdict"] == "better"
    assert f"din against deepfm: better on AUC ({auc['value']:+.4f})" in page.text
    assert f"{auc['value']:+.4f} [{auc['low']:+.4f}, {auc['high']:+.4f}]" in page.text
    assert f"{compared['runs']['din']['auc']['value']:.4f}" in page.text
    for head in ("Metrics", "Differences to deepfm", "Learning", "Calibration", "How it was trained", "How to go on"):
        assert head in page.text
    assert "Where scores come from" not in page.text
    assert "Segments" not in page.text
    assert "20 resamples of whole users" in page.text
    assert f"GAUC leaves out {compared['gauc_users_skipped']}" in page.text
    assert page.tags.count("code") == 2
    # A reference is in the table of metrics, and neither in the sentences nor in the charts of differences.
    assert "no model: the rate of the item" in page.text
    assert f"{compared['runs']['item rate']['auc']['value']:.4f}" in page.text
    assert "item rate against" not in page.text


def test_facts_segments_and_origin_are_shown(tmp_path):
    def segments(auc: float) -> tuple[SegmentView, ...]:
        new, old = {"auc": Interval(auc, auc - 0.1, auc + 0.1)}, {"pcoc": Interval(1.5, 1.4, 1.6)}
        return (SegmentView("User", "new", 100, 25, new), SegmentView("User", "old", 300, 30, new | old))

    origin = {"command": "longrec train a.yaml", "started": "2026-01-02", "packages": {"torch": "9.9", "other": "1"}}
    progress = {"steps": 1_200, "best_step": 800, "stopped": "patience"}
    one = view("lr", segments=segments(0.61), environment=origin, progress=progress)
    other = view("din", segments=segments(0.72), calibrations={"": CURVE, "buy": CURVE})
    odd = view("odd", segments=(SegmentView("User", "new", 7, None, {}),))
    text = check(write(tmp_path / "p.html", [one, other, odd], facts={"lr, din, odd": FACTS})).text
    assert text.index("Data") < text.index("Metrics on test") < text.index("Segments of test")
    assert "1,000 events, 50 users, 20 items" in text
    assert "home (75.0%)" in text
    assert "feature page: odd" in text[: text.index("Data")]  # among the warnings
    row = text[text.index("new100") :]
    assert row.startswith("new100 (25.0%)25.0%0.610 [0.510, 0.710]0.720 [0.620, 0.820]––")
    assert "User (odd)" in text  # other rows, so a table of its own
    assert "longrec train a.yaml" in text
    assert "1,200, stopped early, best validation at step 800" in text
    assert "torch 9.9" in text
    assert "other 1" not in text
    assert "din: buy" in text  # the calibration of a task


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_any_number_of_runs_with_and_without_a_comparison(tmp_path, count):
    names = [f"run{i}" for i in range(count)]
    runs = [view(name) for name in names]
    page = check(write(tmp_path / "a.html", runs))
    assert page.text.count("0.7000") >= count
    assert "undefined" in page.text
    check(write(tmp_path / "b.html", runs, comparison(*names) if count > 1 else None))


def test_a_bare_run_makes_a_page_too(tmp_path):
    bare = view("lr", metrics={}, curves={}, config="", calibrations={}, seconds=None)
    page = check(write(tmp_path / "deep" / "p.html", [bare]))
    assert "Learning" not in page.text
    assert "Calibration" not in page.text


def test_a_sample_shows_its_heaviest_events_first_and_folds_the_rest(tmp_path):
    def text_of(**changes) -> str:
        return check(write(tmp_path / "p.html", [view("din", samples=(sample(**changes),))])).text

    text = text_of(events=14)
    assert text.index("Film 13") < text.index("Film 12") < text.index("4 more events") < text.index("Film 3 ")
    assert "The 3 heaviest have 40% of the whole weight; equal shares would be 21%" in text  # 13 + 12 + 11 of 91
    assert "13 days before" in text
    text = text_of(events=5, weight=-0.1)
    assert "heaviest have" not in text  # raw weights may be negative: shares would mean nothing
    assert "-0.400" in text
    assert "is empty" in text_of(events=0)
    text = text_of(events=3, weight=None, features={"age": "25"}, recommended=[("Alien", 1.25)])
    assert "no weights of single events" in text
    assert text.index("Film 2") < text.index("Film 0")  # the newest, which comes last, first
    assert "age 25" in text
    assert "Alien 1.25" in text


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
    path = write(tmp_path / "p.html", runs, comparison("lr", "din"))
    page = check(path)
    text = page.text
    assert text.index("Warnings") < text.index("Metrics on test")
    assert text.count(both) == 1
    assert f"lr: {one}" in text
    assert f"lr and din: {both}" not in text
    quiet = check(write(tmp_path / "q.html", [view("lr")]))
    assert "Warnings" not in quiet.text
    assert "Calibration on test" in quiet.text
    later = {**comparison("lr", "din"), "split": "valid", "warnings": ["din: AUC on valid is 0.4"]}
    assert "din: AUC on valid is 0.4" in check(write(tmp_path / "r.html", runs, later)).text
