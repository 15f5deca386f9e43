from __future__ import annotations

import math
import sys
from pathlib import Path

import domains
import pytest

from longrec.errors import ConfigError
from longrec.training.extract import ExtractReport

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "instance_tokens"))
from incremental import ARMS, Curve, Day, run_incremental

Domain = tuple[Path, ExtractReport]


@pytest.fixture(scope="module")
def curve(domain: Domain) -> Curve:
    folder, written = domain
    return run_incremental(domains.downstream(folder, Path(written.into)), plug_on=4, arms=ARMS, quiet=True)


def test_there_is_no_dip_when_knowledge_comes_in(curve: Curve) -> None:
    day = curve.days[4]
    assert day.auc["keep"] == day.auc["base"] == day.auc["shuffled"] == day.auc["random"]
    assert day.share == 0
    assert [set(one.auc) for one in curve.days[:4]] == [{"base"}] * 4
    assert all(one.share is not None and one.share > 0 for one in curve.days[5:])


def test_9_shuffled_and_random_controls_gain_nothing_and_knowledge_does(curve: Curve) -> None:
    assert curve.days[5].auc["keep"] - curve.days[5].auc["base"] > 0.1  # the first day that has read knowledge
    assert curve.gain("keep") > 0.03
    assert curve.gain("shuffled") < 0.02
    assert curve.gain("random") < 0.02
    assert curve.gain("base") == 0
    assert math.isnan(curve.gain("concat", first=99))


def test_every_day_is_tested_before_it_is_learned(domain: Domain, curve: Curve) -> None:
    """A protocol that ends a day earlier has the same results for the days before."""
    folder, written = domain
    config = domains.downstream(folder, Path(written.into))
    short = run_incremental(config, plug_on=4, days=6, arms=["base", "keep"], quiet=True)
    assert len(short.days) == 6
    for one, other in zip(short.days, curve.days):
        assert one.rows == other.rows
        assert all(one.auc[arm] == other.auc[arm] for arm in one.auc)


def test_the_table(curve: Curve) -> None:
    text = str(curve).splitlines()
    assert text[0].split() == ["day", "rows", "base", "keep", "shuffled", "random", "concat", "|P(K)|/|a|"]
    assert text[5].split()[:2] == ["4", "*"]
    assert len(text) == len(curve.days) + 2
    assert f"{curve.gain():+.4f}" in text[-1]
    empty = Curve(1, ("base", "keep"), [Day(0, 3, {"base": None})])
    assert empty.lines()[1] == ["0", "3", "", "", ""]


def test_what_cannot_be_run_is_refused(domain: Domain) -> None:
    folder, written = domain
    config = domains.downstream(folder, Path(written.into))
    with pytest.raises(ConfigError, match="no arm named 'kep'"):
        run_incremental(config, plug_on=2, arms=["kep", "base"])
    with pytest.raises(ConfigError, match="base is what the others are held against"):
        run_incremental(config, plug_on=2, arms=["keep"])
    with pytest.raises(ConfigError, match="the protocol plugs: it takes keep_plug"):
        run_incremental(domains.downstream(folder, None), plug_on=2)
    with pytest.raises(ConfigError, match="init_from: every arm begins untrained"):
        run_incremental(config, ["fit.init_from=runs/a"], plug_on=2)
    with pytest.raises(ConfigError, match=r"plug_on: 10; the log has days 0 to 9"):
        run_incremental(config, plug_on=10, quiet=True)
