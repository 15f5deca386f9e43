from __future__ import annotations

import re
import subprocess
import sys

from longrec.models.core.catalog import describe, help_text, names


def test_a_card_names_the_paper() -> None:
    card = describe("din")
    assert (card.name, card.kind, card.year, card.reads_history) == ("din", "ranker", 2018, True)
    assert card.title == "Deep Interest Network for Click-Through Rate Prediction"
    assert card.link == "https://arxiv.org/abs/1706.06978"
    assert card.source.endswith("KDD 2018")
    assert not describe("deepfm").reads_history


def test_listing_and_explaining_import_no_torch() -> None:
    code = (
        "import sys; from longrec.models.core.catalog import *\n"
        "[(describe(n), help_text(n)) for n in names()]\n"
        "assert 'torch' not in sys.modules and 'longrec.models.din' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_prints_the_docstring_and_every_setting() -> None:
    text = help_text("din")
    assert text.startswith("DIN: Deep Interest Network")
    assert "    attention: tuple[int, ...] = (80, 40)\n        Hidden units of the activation unit." in text
    assert re.search(r"^    activation: relu \| prelu \| dice \| sigmoid( \| \w+)+ = 'relu'$", text, re.MULTILINE)
    assert "    pool: mean | sum | max = 'mean'" in help_text("pooling")
    assert help_text("lr").endswith("Settings\n    none")
    assert all(help_text(name) for name in names())
