"""Tests of the model pages: traced data flow, operation counts against formulas, and conversion of texts to
Markdown.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import make_models
import model_page
import pytest
import torch
import torch.nn.functional as F
from model_boxes import Box, Figure
from model_cost import OperationCounter, count_operations
from model_figure import svg
from model_run import short
from model_trace import trace

from longrec.models.core.catalog import describe, settings, variants

TINY = '''
"""Tiny: A model of every kind of box (made up).

Nobody, here 2026. https://example.org

    logit = [f, mean_j w_j k_j, c] w                                                 (1)

with ``w``_j as in *din*, [c] a choice | and so on:

    w_j = q k_j                                                                      (2)

Departures from the paper
    - there is
      none;
    - see [1](x).

Shapes: B rows.
"""
import torch
from longrec.config import Strict
from longrec.models.core.kinds import Ranker
from longrec.nn.embedding import Embeddings
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from torch import nn


class TinyConfig(Strict):
    """None."""


class Tiny(Ranker):
    """One of each."""

    Config = TinyConfig
    reads_history = True

    def __init__(self, config, fields):
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, 16, histories=True)
        self.queries = Queries(fields, self.embeddings.widths, "tiny")
        self.experts = nn.ModuleList(Linear(96, 5) for _ in range(3))
        self.mix = nn.Parameter(torch.randn(96, 10))
        self.last = MLP(15 + 10 + 64, [7], outputs=1)

    def forward(self, batch):
        embedded = self.embeddings(batch)
        f_BF = torch.cat(list(embedded.features.values()), 1)
        parts = [expert(f_BF) for expert in self.experts]
        q_BQ, k_UK, segments = self.queries(batch, embedded, "clicks")
        w_N = segments.softmax(segments.mul(q_BQ, k_UK[:, : q_BQ.shape[1]]).sum(1))
        parts += [f_BF @ self.mix, segments.weighted_sum(w_N, k_UK)]
        all_BX = torch.cat(parts, 1)
        return self.last(all_BX).squeeze(1) + self.last.hidden(all_BX)[:, 0] + all_BX[:, :5].sum(1)
'''


def boxes(figure: Figure) -> dict[str, list[Box]]:
    by_name: dict[str, list[Box]] = {}
    for box in figure.boxes.values():
        by_name.setdefault(box.name, []).append(box)
    return by_name


def feeds(figure: Figure, name: str) -> set[str]:
    """Names of the boxes that feed a box (all of that name)."""
    return {figure.boxes[a].name for a, b in figure.lines if figure.boxes[b].name == name}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Figure:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "of_the_pages").mkdir()
    (folder / "of_the_pages" / "tiny.py").write_text(TINY)
    sys.path.insert(0, str(folder))
    try:
        return trace("of_the_pages.tiny")
    finally:
        sys.path.remove(str(folder))


# ---- data flow ----------------------------------------------------------------------------------------------------


def test_lines_are_what_fed_what(tiny: Figure) -> None:
    assert feeds(tiny, "embeddings") == {"impression", "clicks"}
    assert feeds(tiny, "experts.0") == feeds(tiny, "experts.1 … 2") == {"embeddings"}
    assert feeds(tiny, "mix") == {"embeddings"}
    assert feeds(tiny, "last") == {"experts.0", "experts.1 … 2", "mix", "weighted sum"}
    assert feeds(tiny, "logit") == {"experts.0", "last"}, "of the concatenated columns, only the first"
    assert "queries" not in boxes(tiny), "it computes nothing"


def test_a_box_shows_what_it_is(tiny: Figure) -> None:
    by_name = boxes(tiny)
    (experts,) = by_name["experts.1 … 2"]
    assert (experts.kind, experts.parameters, experts.shape, experts.times) == ("Linear", 485, "[B, 5]", 2)
    (last,) = by_name["last"]
    assert [(entry.name, entry.kind, entry.shape, entry.times) for entry in last.entries] == [
        ("layers.0", "Layer", "[B, 7]", 2),
        ("last", "Linear", "[B, 1]", 1),
    ]
    assert (last.times, last.parameters) == (2, 7 * 89 + 7 + 7 + 1)
    (mix,) = by_name["mix"]
    assert (mix.kind, mix.shape, mix.rates) == ("parameter", "[B, 10]", {"candidate": 2 * 19 * 96 * 10})
    assert tiny.learned == 3 * 485 + 960 + 638


def test_rates_are_separate(tiny: Figure) -> None:
    by_name = boxes(tiny)
    assert set(by_name["mul"][0].rates) == {"pair"}
    assert set(by_name["softmax"][0].rates) == {"pair"}
    assert by_name["weighted sum"][0].shape == "[B, 64]"
    features, clicks = by_name["embeddings"]
    assert [entry.rate for entry in features.entries] == ["request", "candidate"]
    assert [entry.rate for entry in clicks.entries] == ["event"]
    assert (features.shape, clicks.shape) == ("6 × [B, 16]", "4 × [T, 16]")


def test_din_weighs_events_by_the_candidate() -> None:
    figure = trace("din")
    (unit,) = boxes(figure)["units.0"]
    assert [entry.name for entry in unit.entries] == ["first", "rest", "weighted sum"]
    pairs, events = 19 * 23, 23
    assert unit.rates["event"] == 2 * events * 64 * 80, "the keys once per event"
    assert unit.rates["pair"] > 2 * pairs * (32 * 80 + 80 * 40), "terms of both once per pair"
    assert feeds(figure, "top") == {"embeddings", "units.0"}
    assert feeds(figure, "logit") == {"top"}


def test_a_model_without_histories_has_no_history_in_its_figure() -> None:
    figure = trace("deepfm")
    assert "clicks" not in boxes(figure)
    assert feeds(figure, "deep") == {"embeddings"}
    assert feeds(figure, "logit") == {"first_order", "bi interaction", "deep"}


def test_an_encoder_gives_a_vector_and_no_line_goes_back() -> None:
    figure = trace("iat")
    assert feeds(figure, "vector") == {"compressor"}
    assert feeds(figure, "base.deep.last") == {"decoder"}, "the head of the base, on what came of the base itself"
    after = {a: {b for x, b in figure.lines if x == a} for a in figure.boxes}
    for start in figure.boxes:
        seen: set[int] = set()
        waiting = set(after[start])
        while waiting:
            seen |= waiting
            waiting = {b for a in waiting for b in after[a]} - seen
        assert start not in seen
    assert all(box.times == 1 for box in figure.boxes.values() if box.kind == "Layer"), "both passes count once"


# ---- the picture --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keep", "can"])
def test_a_figure_is_well_formed_and_nothing_overlaps(name: str) -> None:
    figure = trace(name)
    text = svg(figure)
    assert text == svg(trace(name))
    root = ElementTree.fromstring(text)
    spot = "{http://www.w3.org/2000/svg}"
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    placed = []
    for group in root.findall(f"{spot}g"):
        frame = group.find(f"{spot}rect")
        if frame is not None:
            x, y = map(float, re.findall(r"-?[\d.]+", group.attrib["transform"]))
            placed.append((x, y, x + float(frame.attrib["width"]), y + float(frame.attrib["height"])))
    assert len(placed) == len(figure.boxes)
    assert all(x >= 0 and y >= 0 and right <= width and bottom <= height for x, y, right, bottom in placed)
    for at, (x, y, right, bottom) in enumerate(placed):
        for u, v, other_right, other_bottom in placed[:at]:
            assert right <= u or other_right <= x or bottom <= v or other_bottom <= y
    paths = [path.attrib["d"] for path in root.findall(f"{spot}path")]
    assert len(paths) == len(figure.lines)
    for path in paths:
        numbers = list(map(float, re.findall(r"-?[\d.]+", path)))
        (x, y), (u, v) = numbers[:2], numbers[-2:]
        assert any(left <= x <= right and abs(bottom - y) <= 1 for left, _, right, bottom in placed)
        assert any(left <= u <= right and abs(top - v) <= 2 for left, top, right, _ in placed)


# ---- counts -------------------------------------------------------------------------------------------------------


def operations(run: Any) -> int:
    with torch.no_grad(), OperationCounter() as counting:
        run()
    return counting.total


def test_operations_by_hand() -> None:
    x, w = torch.randn(6, 4), torch.randn(5, 4)
    assert operations(lambda: F.linear(x, w)) == 2 * 6 * 4 * 5
    assert operations(lambda: x.relu()) == 24
    assert operations(lambda: x.sum(1)) == 24
    assert operations(lambda: x @ x[0]) == 2 * 24
    assert operations(lambda: torch.cat([x, x]).t()[1:].contiguous()) == 0
    assert operations(lambda: F.embedding(torch.tensor([1, 2]), w)) == 0
    assert operations(lambda: torch.arange(9) * 2) == 0, "whole numbers"
    bag = torch.tensor([0, 1, 1])
    assert operations(lambda: F.embedding_bag(bag, w, torch.tensor([0, 3]), mode="sum", include_last_offset=True)) == 12
    q, k, v = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    assert operations(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 3 * 7 * 9 * (16 + 16 + 1)
    with pytest.raises(ValueError, match="unknown cost of the operator linalg_inv_ex"):
        operations(lambda: torch.linalg.inv(torch.eye(3)))


def test_operations_of_a_model_do_not_hang_on_how_a_layer_runs() -> None:
    from model_batches import small, some_rows

    model, fields = small("pooling")
    one, many = (
        count_operations(model, some_rows(fields, [3] * 10)),
        count_operations(model, some_rows(fields, [3] * 1_000)),
    )
    assert many == 100 * one


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.00 k"), (43_136, "43.1 k"), (211_457_912, "211 M"), (3_000_000_000, "3.00 G")],
)
def test_numbers_of_operations_in_short(count: int, text: str) -> None:
    assert short(count) == text


# ---- texts --------------------------------------------------------------------------------------------------------


def test_a_docstring_becomes_markdown() -> None:
    text = TINY.split('"""')[1]
    assert model_page.body(text) == [
        "```text",
        "logit = [f, mean_j w_j k_j, c] w                                                 (1)",
        "```",
        "",
        r"with `w`\_j as in \*din\*, \[c\] a choice \| and so on:",
        "",
        "```text",
        "w_j = q k_j                                                                      (2)",
        "```",
        "",
        "### Departures from the paper",
        "",
        "- there is none;",
        r"- see \[1\](x).".replace("](", r"]\("),
        "",
        "Shapes: B rows.",
    ]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("h'_t and K_u, _x_", r"h'\_t and K_u, \_x\_"),
        ("by `label` or ``a * b``", "by `label` or `a * b`"),
        ("a < b & c", "a &lt; b &amp; c"),
        ("from  here\n    on", "from here on"),
    ],
)
def test_text_stays_as_it_is(text: str, markdown: str) -> None:
    assert model_page.plain(text) == markdown


RESULTS = {
    "movielens": {"din": {"auc": 0.81234, "low": 0.80, "high": 0.82, "seeds": 3}},
    "kuairand": {"fm": {"auc": 0.7}},
    "speed": {"din": {"train_rows_per_s": 51_234.4, "inference_ms_100": 1.234, "parameters": 62_243}},
}


def test_results_of_a_model() -> None:
    lines = "\n".join(model_page.format_results("din", RESULTS))
    assert "| MovieLens-1M | 0.8123 | 0.8000 to 0.8200 | 3 |" in lines
    assert "KuaiRand" not in lines
    assert "| rows per second in training | 51,234 |" in lines
    assert "| milliseconds for 100 candidates | 1.23 |" in lines
    assert "| KuaiRand-Pure | 0.7000 | ? to ? | 1 |" in "\n".join(model_page.format_results("fm", RESULTS))
    for results in (RESULTS, {}):
        assert model_page.format_results("lr", results) == ["Not measured yet."]


def test_a_page_holds_what_was_handed_in_and_gives_it_back() -> None:
    text = model_page.page("din", "drawn", "| a |\n\nb", {})
    assert model_page.read_section(text, model_page.DRAWN) == "drawn"
    assert model_page.read_section(text, model_page.COUNTED) == "| a |\n\nb"
    assert model_page.read_section("nothing", model_page.DRAWN) is None
    assert text.startswith("# DIN\n")
    assert "\n## Results\n\nNot measured yet.\n" in text
    assert "@inproceedings{zhou2018din," in text
    assert all(f"| `{one.key}` |" in text for one in settings("din"))
    assert text.count("\n- `{name: din") == len(variants("din"))


def test_settings_of_the_suite_are_shown_as_a_job_writes_them() -> None:
    variant = model_page._variant("din", "{**{'mlp': [8, 4]}, **{'base': {'name': 'fm'}, 'softmax': True}, 'x': None}")
    assert variant == "{name: din, mlp: [8, 4], base: {name: fm}, softmax: true, x: null}"
    assert model_page._variant("din", "dict(a=1)") == "dict(a=1)"


# ---- writing ------------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_code_and_nothing_else(tmp_path: Path) -> None:
    names = {path.name for path in make_models._closure("longrec.models.din")}
    assert {"din.py", "attention.py", "mlp.py", "segments.py", "batch.py", "base.py"} <= names
    assert "deepfm.py" not in names
    path = tmp_path / "a.py"
    codes = []
    for text in ('"""A."""\nx = 1\n', '"""B."""\n# why\nx  =  1\n', "x = 2\n"):
        path.write_text(text)
        make_models._code.cache_clear()
        codes.append(make_models._code(path))
    assert codes[0] == codes[1] != codes[2]


def test_a_broken_model_is_reported_and_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_models, "FOLDER", tmp_path)
    real = make_models.build_page

    def build_page(name: str, *rest: Any) -> tuple[str, str]:
        if name == "fm":
            raise RuntimeError("half made")
        return real(name, *rest)

    monkeypatch.setattr(make_models, "build_page", build_page)
    pages = make_models.pages(["fm", "lr"], {}, {})
    card, text, figure, _ = next(pages)
    with pytest.raises(make_models.BrokenModelError, match=r"fm: RuntimeError at test_model_pages.py:\d+: half made"):
        next(pages)
    assert card == describe("lr")
    assert text.startswith("# LR\n")
    assert figure.startswith("<svg ")


def test_the_list_links_every_page() -> None:
    text = make_models.format_list([describe("din"), describe("fm")], {})
    assert "## Results" not in text
    assert "| [`din`](models/din.md) | ranker | yes | [Deep Interest Network" in text
    assert "| [`fm`](models/fm.md) | ranker | no | [Factorization Machines](https://doi.org/" in text


def test_the_list_shows_results_best_first() -> None:
    text = make_models.format_list([describe("din"), describe("fm")], RESULTS)
    lines = [line for line in text.splitlines() if "](models/" in line and "| [`" in line][2:]
    assert lines == [
        "| [`din`](models/din.md) | 0.8123 |  | 51,234 | 1.23 |",
        "| [`fm`](models/fm.md) |  | 0.7000 |  |  |",
    ]
    assert "| model | test AUC, MovieLens-1M | test AUC, KuaiRand-Pure | rows per CPU-second in training" in text
