"""Findings of a diagnosis: a healthy tokenizer has none, and every planted fault has its own."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.auditing.finding import ALARM, NOTICE, OK, SKIPPED
from longrec.reporting.tables import to_plain
from longrec.semantic_ids.churn import Churn
from longrec.semantic_ids.diagnostics.bounds import BOUNDS, Bound
from longrec.semantic_ids.diagnostics.codebooks import sum_codewords
from longrec.semantic_ids.diagnostics.diagnosis import QUANTIZED, UNQUANTIZED, Diagnosis, Material
from longrec.semantic_ids.diagnostics.diagnosis_page import write_diagnosis
from longrec.semantic_ids.diagnostics.diagnosis_text import format_diagnosis
from longrec.semantic_ids.diagnostics.item_pairs import list_next_items
from longrec.semantic_ids.diagnostics.measure import diagnose_material

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "diagnosis.md"
ITEMS, SIZE, LEVELS, DIM = 900, 12, 3, 32
Plant = Callable[[Material], Material]


def build(seed: int = 0) -> Material:
    """Return a healthy tokenizer: all IDs different, codes used evenly, and users who stay within level-1 codes."""
    random = np.random.default_rng(seed)
    ids = random.permutation(SIZE**LEVELS)[:ITEMS]
    codes = np.stack([ids // SIZE**2, ids // SIZE % SIZE, ids % SIZE], 1)
    codebooks = [random.normal(0, scale, (SIZE, DIM)) for scale in (1.0, 0.7, 0.5)]
    x = sum_codewords(codes, codebooks)
    x += random.normal(0, 0.1, x.shape)
    users, events = 300, 8
    group = random.integers(0, SIZE, (users, 1))
    own = np.array([random.choice(np.flatnonzero(codes[:, 0] == one), events) for one in group[:, 0]])
    item = np.where(random.random((users, events)) < 0.7, own, random.integers(0, ITEMS, (users, events)))
    pairs = list_next_items(np.repeat(np.arange(users), events), item.ravel())
    exposure = np.bincount(item.ravel(), minlength=ITEMS).astype(float)
    reconstructions = {QUANTIZED: sum_codewords(codes, codebooks), UNQUANTIZED: x + random.normal(0, 0.01, x.shape)}
    churn = Churn(ITEMS, (0.01, 0.02, 0.05), (0.9, 0.99, 1.0), np.tile(np.arange(SIZE), (LEVELS, 1)))
    return Material(
        "healthy", codes, (SIZE,) * LEVELS, codebooks, "", x, x + 0.0001, reconstructions, exposure, pairs, churn
    )  # fmt: skip


@pytest.fixture(scope="module")
def healthy() -> Material:
    return build()


@pytest.fixture(scope="module")
def diagnosis(healthy: Material) -> Diagnosis:
    return diagnose_material(healthy)


def recode(own: Material, **columns: Any) -> Material:
    """Return the material with other codes on some levels."""
    codes = own.codes.copy()
    for name, column in columns.items():
        codes[:, int(name[-1]) - 1] = column
    return replace(own, codes=codes)


def draw(own: Material, seed: int = 9) -> Any:
    return np.random.default_rng(seed).normal(size=np.shape(own.vectors))


def expose(own: Material, mask: Any) -> Material:
    return replace(own, exposure=np.where(mask, 40.0, 1.0))


def stretch(own: Material) -> Material:
    z = own.latents.copy()  # type: ignore[union-attr]
    z[:, 0] *= 12
    return replace(own, latents=z)


def mix_pairs(own: Material) -> Material:
    pairs = own.pairs.copy()  # type: ignore[union-attr]
    second = (pairs[:, 0] + np.random.default_rng(1).integers(1, ITEMS, len(pairs))) % ITEMS
    return replace(own, pairs=np.stack([pairs[:, 0], second], 1))


def change(own: Material, label: str, vectors: Any) -> Material:
    return replace(own, reconstructions={**own.reconstructions, label: vectors})


PLANTED: list[tuple[str, str, Plant]] = [
    ("dead codes", ALARM, lambda own: replace(own, sizes=(64, SIZE, SIZE), codebooks=None, reconstructions={})),
    ("uneven use", ALARM, lambda own: recode(own, code_2=np.where(np.arange(ITEMS) % 30, 0, own.codes[:, 1]))),
    ("collapsed level", ALARM, lambda own: recode(own, code_3=np.where(np.arange(ITEMS) % 9, 0, own.codes[:, 2]))),
    ("idle level", ALARM, lambda own: replace(own, codebooks=[*own.codebooks[:2], own.codebooks[2] * 1e-3])),  # type: ignore[index]
    ("close codewords", NOTICE, lambda own: replace(own, codebooks=[own.codebooks[0] * 0.1, *own.codebooks[1:]])),  # type: ignore[index]
    ("popular codes", ALARM, lambda own: expose(own, own.codes[:, 0] == 3)),
    ("popular prefixes", NOTICE, lambda own: expose(own, (own.codes[:, :2] // 2 == 1).all(1))),
    ("twins", ALARM, lambda own: replace(own, codes=own.codes[np.where(np.arange(ITEMS) % 12, np.arange(ITEMS), 0)])),
    ("retention", ALARM, lambda own: change(own, QUANTIZED, draw(own))),
    ("autoencoder", ALARM, lambda own: change(own, UNQUANTIZED, draw(own))),
    ("item vectors", NOTICE, lambda own: replace(own, vectors=draw(own))),
    ("weighted match", ALARM, mix_pairs),
    ("lost behavior", ALARM, lambda own: replace(own, codebooks=[own.codebooks[0] * 0.01, *own.codebooks[1:]])),  # type: ignore[index]
    ("one direction", ALARM, stretch),
    ("narrow cone", ALARM, lambda own: replace(own, latents=own.latents + 4.0)),  # type: ignore[operator]
    ("churn", ALARM, lambda own: replace(own, churn=replace(own.churn, prefixes=(0.4, 0.6, 0.9)))),
]  # fmt: skip


def test_a_healthy_tokenizer_has_no_fault(diagnosis: Diagnosis) -> None:
    assert [(one.check, one.figure, one.bound) for one in diagnosis.faults] == []
    assert [one.check for one in diagnosis.findings] == list(BOUNDS)
    assert {one.verdict for one in diagnosis.findings} == {OK}


def test_every_check_has_a_planted_fault() -> None:
    assert [check for check, _, _ in PLANTED] == list(BOUNDS)


@pytest.mark.parametrize(("check", "verdict", "plant"), PLANTED, ids=[check for check, _, _ in PLANTED])
def test_a_planted_fault_is_reported(check: str, verdict: str, plant: Plant, healthy: Material) -> None:
    measured = diagnose_material(plant(healthy), max_pairs=600)
    finding = measured.find(check)
    assert finding.verdict == verdict, (finding.figure, finding.bound)
    assert finding.why
    assert finding.do
    assert finding in measured.faults
    verdicts = [one.verdict for one in measured.faults]
    assert verdicts == sorted(verdicts)  # alarms first


def test_a_popular_code_is_named_with_its_share(healthy: Material) -> None:
    own = expose(healthy, healthy.codes[:, 0] == 3)
    share = own.exposure[own.codes[:, 0] == 3].sum() / own.exposure.sum()  # type: ignore[index,union-attr]
    finding = diagnose_material(own, max_pairs=600).find("popular codes")
    assert finding.value == pytest.approx(share)
    assert finding.name == f"The top 1 of 12 level-1 codes holds {100 * share:.1f} % of the exposure"


def test_twins_with_equal_vectors_are_counted(healthy: Material) -> None:
    at = np.where(np.arange(ITEMS) % 12, np.arange(ITEMS), 0)
    x = healthy.vectors[at]  # type: ignore[index]
    finding = diagnose_material(replace(healthy, codes=healthy.codes[at], vectors=x), max_pairs=600).find("twins")
    assert finding.value == pytest.approx(75 / ITEMS)
    assert "75 items here" in finding.do


def test_few_codes_are_not_popular_because_they_are_few(healthy: Material) -> None:
    """One of three codes has a third of the exposure, which is no fault."""
    own = replace(recode(healthy, code_1=healthy.codes[:, 0] % 3), sizes=(3, SIZE, SIZE), codebooks=None)
    finding = diagnose_material(replace(own, reconstructions={}), max_pairs=600).find("popular codes")
    assert finding.value is not None
    assert finding.value > (BOUNDS["popular codes"].alarm or 1)
    assert finding.verdict == OK


def test_figures_are_of_the_right_level_weights_and_sigma(healthy: Material, diagnosis: Diagnosis) -> None:
    from longrec.semantic_ids.diagnostics.codebooks import iterate_residuals
    from longrec.semantic_ids.diagnostics.overlap import compute_overlap
    from longrec.semantic_ids.diagnostics.usage import compute_shares

    assert healthy.codebooks is not None
    assert healthy.latents is not None
    inputs = iterate_residuals(healthy.latents, healthy.codes, healthy.codebooks)
    residuals = [residual.copy() for residual in inputs]
    weighted = diagnose_material(healthy, weights="exposure", sigma_of="latent", max_pairs=600)
    fixed = diagnose_material(healthy, sigma=0.9, max_pairs=600)
    for at, level in enumerate(diagnosis.levels):
        shares = compute_shares(healthy.codes[:, at], SIZE)
        sigma = np.sqrt(residuals[at].var(0).mean())
        expected = compute_overlap(shares, healthy.codebooks[at], sigma)
        assert level.overlap == expected
        assert [own.sigma for own in level.curve] == pytest.approx([sigma * f for f in (0.5, 1, 2, 4, 8)])
        assert level.curve[1].overlap == pytest.approx(expected.overlap)
        exposed = compute_shares(healthy.codes[:, at], SIZE, healthy.exposure)
        whole = np.sqrt(residuals[0].var(0).mean())
        assert weighted.levels[at].overlap == compute_overlap(exposed, healthy.codebooks[at], whole)
        assert fixed.levels[at].overlap == compute_overlap(shares, healthy.codebooks[at], 0.9)


def test_without_vectors_and_log_the_codes_alone_are_measured(healthy: Material, tmp_path: Path) -> None:
    bare = diagnose_material(Material("bare", healthy.codes, healthy.sizes))
    measured = {one.check for one in bare.findings if one.verdict == OK}
    assert measured == {"dead codes", "uneven use", "collapsed level", "popular codes", "twins"}
    assert {one.verdict for one in bare.findings} == {OK, SKIPPED}
    assert bare.levels[0].overlap is None
    assert bare.to_columns()["capacity"] == [None] * 3
    text = write_diagnosis(tmp_path / "bare.html", bare).read_text()
    assert "not measured" in text
    assert "Geometry of the vectors" not in text
    logged = diagnose_material(
        Material("logged", healthy.codes, healthy.sizes, exposure=healthy.exposure, pairs=healthy.pairs)
    )
    assert logged.find("weighted match").verdict == OK
    assert logged.find("popular prefixes").verdict == OK
    assert logged.retention is None


def test_one_level_and_equal_codes_are_measured() -> None:
    one = diagnose_material(Material("one", np.zeros((5, 1), int), (4,)))
    assert one.find("twins").figure == "100 %"
    assert one.find("collapsed level").verdict == SKIPPED
    assert format_diagnosis(one).count("alarm: ") == 2


def test_a_level_with_nothing_left_has_no_overlap(healthy: Material, tmp_path: Path) -> None:
    """The first level explains everything: the vectors are its codewords."""
    codes = np.repeat(np.arange(8), 4)[:, None] * [1, 0]
    books = [np.random.default_rng(0).normal(size=(8, 4)), np.zeros((8, 4))]
    x = books[0][codes[:, 0]]
    own = diagnose_material(Material("exact", codes, (8, 8), books, "", x, x))
    assert own.levels[1].overlap is None
    assert any("Level 2 has no overlap" in note for note in own.notes)
    assert any(note.startswith("Sigma is the root of the mean variance per dimension") for note in own.notes)
    assert own.find("idle level").verdict == ALARM
    write_diagnosis(tmp_path / "exact.html", own)


class Outline(HTMLParser):
    """Headings, links to elsewhere, and open tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.references, self.open = [], [], []  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2"):
            self.headings.append("")
        self.references += [value for name, value in attrs if name in ("src", "href") and value != "data:,"]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings[-1] += data


def test_the_page_is_whole_and_needs_nothing_else(healthy: Material, tmp_path: Path) -> None:
    evil = "<script>alert('1')</script>"
    own = expose(replace(healthy, name=evil, notes=[f"`{evil}`"]), healthy.codes[:, 0] == 3)
    text = write_diagnosis(tmp_path / "page.html", diagnose_material(own, max_pairs=600)).read_text()
    page = Outline(text)
    assert not page.open
    assert page.references == []
    assert "<script" not in text
    assert page.headings == [
        evil,
        "What to change",
        "Levels: do the codes use their space?",
        "Where the exposure goes",
        "Full IDs and their tree",
        "What the codes keep of the vectors",
        "Do the codes follow behavior?",
        "Geometry of the vectors",
        "Churn between versions",
        "All checks",
        "How it was measured",
    ]
    charts = re.findall(r"<svg class=\"chart\".*?</svg>", text, re.S)
    assert len(charts) == 12
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.get("aria-label")
        assert "nan" not in chart
        assert any(element.tag.endswith("text") for element in root.iter())
    for bound in BOUNDS.values():
        assert bound.describe() in text
    assert "alarm above 30 %" in text.split("Levels: do the codes")[0]  # the bound is beside the finding


def test_a_page_without_a_fault_says_so(diagnosis: Diagnosis, tmp_path: Path) -> None:
    text = write_diagnosis(tmp_path / "page.html", diagnosis).read_text()
    assert f"Nothing: {len(BOUNDS)} checks, none beyond its bound." in text
    assert format_diagnosis(diagnosis).endswith(f"{len(BOUNDS)} checks without a fault, 0 not measured")


def test_the_result_as_a_table_and_as_json(diagnosis: Diagnosis) -> None:
    assert diagnosis.to_columns()["level"] == [1, 2, 3]
    assert len(diagnosis.to_arrow()) == 3
    assert repr(diagnosis).startswith("healthy: 900 items, 3 levels\n")
    plain = json.loads(json.dumps(to_plain(diagnosis), allow_nan=False))
    assert len(json.dumps(plain)) < 40_000
    assert plain["levels"][0]["usage"].keys() == {"size", "active", "perplexity", "gini", "largest"}
    assert plain["retention"]["retention"].keys() == {QUANTIZED, UNQUANTIZED}
    assert [finding["check"] for finding in plain["findings"]] == list(BOUNDS)


@pytest.mark.parametrize(
    ("bound", "value", "verdict"),
    [
        (Bound("a", 0.1, 0.3, above=True), 0.1, OK),
        (Bound("a", 0.1, 0.3, above=True), 0.11, NOTICE),
        (Bound("a", 0.1, 0.3, above=True), 0.31, ALARM),
        (Bound("a", 0.9, 0.5, above=False), 0.9, OK),
        (Bound("a", 0.9, 0.5, above=False), 0.6, NOTICE),
        (Bound("a", 0.9, 0.5, above=False), 0.4, ALARM),
        (Bound("a", 3.0, None, above=False), 0.0, NOTICE),
        (Bound("a", 0.9, 0.5, above=False), float("nan"), NOTICE),
    ],
)
def test_a_bound_judges_a_value(bound: Bound, value: float, verdict: str) -> None:
    assert bound.judge(value) == verdict


@pytest.mark.parametrize(
    ("check", "value", "verdict"),
    [
        ("dead codes", 512 / 4_096, ALARM),  # RQ-VAE, level 1
        ("dead codes", 3_371 / 4_096, NOTICE),  # RQ-KMeans, level 3
        ("collapsed level", 699 / 3_665, ALARM),  # DRQ-VAE with the contrastive term
        ("collapsed level", 1_912 / 3_765, OK),  # RQ-KMeans
        ("uneven use", 3_872 / 4_096, OK),  # RQ-VAE with EMA and revival, level 1
        ("close codewords", 3_872 / 3_667.9, OK),  # the same: capacity is close to perplexity
        ("retention", 0.6297, NOTICE),  # RQ-KMeans
        ("autoencoder", 0.9998, OK),  # DRQ-VAE
        ("narrow cone", 0.4622, NOTICE),  # DRQ-VAE with the contrastive term
        ("narrow cone", 0.0894, OK),  # DRQ-VAE
        ("twins", 0.08, ALARM),
    ],
)
def test_the_bounds_judge_the_tokenizers_of_the_paper(check: str, value: float, verdict: str) -> None:
    """What the text of DRQ calls a fault of a tokenizer is one by its published figures."""
    assert BOUNDS[check].judge(value) == verdict


def test_the_guide_states_every_bound() -> None:
    rows = dict(re.findall(r"^\| ([\w -]+) \| .* \| (.+) \|$", GUIDE.read_text(encoding="utf-8"), re.M))
    assert {check: rows.get(check) for check in BOUNDS} == {check: own.describe() for check, own in BOUNDS.items()}
