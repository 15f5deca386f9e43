from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score
from sklearn.metrics.pairwise import cosine_distances

from longrec import metrics
from longrec.errors import ConfigError, DataError
from longrec.metrics import RelevantRanks, map_at_k, mrr, ndcg_at_k, precision_at_k, rate_lists
from longrec.metrics.accuracy import NAMES

STORED = json.loads((Path(__file__).parent / "library_values.json").read_text(encoding="utf-8"))


def test_one_relevant_item_by_hand():
    values = rate_lists(RelevantRanks.of_targets([0, 2, 9.5, 10, np.inf]), [3, 10])
    assert values["hr@10"].tolist() == values["recall@10"].tolist() == [1, 1, 1, 0, 0]
    assert values["precision@10"].tolist() == [0.1, 0.1, 0.1, 0, 0]
    assert values["mrr@3"].tolist() == values["map@3"].tolist() == [1, 1 / 3, 0, 0, 0]
    assert values["ndcg@10"].tolist() == pytest.approx([1, 0.5, 1 / np.log2(11.5), 0, 0])


def test_several_relevant_items_by_hand():
    # One list of five: relevant at ranks 1 and 3 with grades 1 and 3, and one with grade 2 that is not in the list.
    ranks = RelevantRanks.of_items(list("abcde"), [0] * 5, list("bdz"), [0, 0, 0], lists=2, grade=[1, 3, 2])
    values = {name: value[0] for name, value in rate_lists(ranks, [2, 4]).items()}
    assert [values[f"hr@{k}"] for k in (2, 4)] == [1, 1]
    assert [values[f"recall@{k}"] for k in (2, 4)] == pytest.approx([1 / 3, 2 / 3])
    assert [values[f"precision@{k}"] for k in (2, 4)] == [1 / 2, 2 / 4]
    assert [values[f"mrr@{k}"] for k in (2, 4)] == [1 / 2, 1 / 2]
    assert [values[f"map@{k}"] for k in (2, 4)] == pytest.approx([1 / 2 / 2, (1 / 2 + 2 / 4) / 3])
    assert metrics.list_average_precision(ranks, 2, "relevant")[0] == pytest.approx(1 / 2 / 3)
    discount = 1 / np.log2([2, 3, 4, 5])
    ideal = 7 * discount[0] + 3 * discount[1] + 1 * discount[2]
    assert values["ndcg@4"] == pytest.approx((1 * discount[1] + 7 * discount[3]) / ideal)
    linear = metrics.list_ndcg(ranks, 4, gain="linear")[0]
    assert linear == pytest.approx((discount[1] + 3 * discount[3]) / (3 * discount[0] + 2 * discount[1] + discount[2]))
    assert all(np.isnan(value[1]) for value in rate_lists(ranks, [2]).values())  # nothing relevant


def test_a_best_list_has_one_at_every_cut():
    ranks = RelevantRanks.of_items(list("abcd"), [0] * 4, list("abc"), [0] * 3, lists=1, grade=[3, 2, 2])
    for k in (1, 2, 3, 10):
        values = rate_lists(ranks, [k], ("hr", "ndcg", "mrr", "map"))
        assert [value[0] for value in values.values()] == pytest.approx([1] * 4)


def test_lists_without_a_relevant_item_are_skipped_or_zero():
    rows = ([1, 0, 0, 0], [4, 3, 2, 1], [1, 1, 2, 2])
    for measure in (ndcg_at_k, precision_at_k, map_at_k, mrr, metrics.hit_rate_at_k, metrics.recall_at_k):
        skipped = measure(*rows, 1)
        assert skipped == 1
        assert measure(*rows, 1, empty="zero") == 0.5
        assert measure([0, 0], [1, 2], [1, 1], 1, empty="zero") == 0
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        mrr(*rows, 1, empty="skipp")


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: f"seed {case['seed']}")
@pytest.mark.parametrize("library", ["rectools", "ranx", "scikit-learn"])
def test_values_are_those_of_other_libraries(case, library):
    """The values were computed by the libraries of ``versions``, see bench/quality/metric_libraries.py."""
    lists, relevant, items = case["lists"], case["relevant"], STORED["items"]
    item, group = np.concatenate(lists), np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    rank = np.concatenate([np.arange(len(one)) for one in lists])
    pairs = [(number, *pair) for number, own in enumerate(relevant) for pair in own]
    owner, wanted, grade = (np.array(column) for column in zip(*pairs))
    ranks = RelevantRanks.of_items(item, group, wanted, owner, len(lists), grade)
    binary = RelevantRanks(ranks.owner, ranks.rank, np.ones(len(wanted)), ranks.lists)
    earlier = np.array(case["earlier"])
    count = np.bincount(earlier[:, 1], minlength=items)
    share = metrics.item_shares(count, len(np.unique(earlier[:, 0])))
    levels = np.unique(count)[::-1]  # RecTools gives equal counts one rank
    popularity = np.where(count > 0, np.searchsorted(-levels, -count), np.inf)
    hit = np.isin(group * 1000 + item, owner * 1000 + wanted)
    compared = 0
    for key, theirs in case["values"][library].items():
        name, k = key.rpartition("@")[0], int(key.rpartition("@")[2])
        top = rank < k
        match name:
            case "ndcg linear":
                own = metrics.list_ndcg(ranks, k, gain="linear")
            case "ndcg exponential":
                own = metrics.list_ndcg(ranks, k)
            case "ndcg binary":
                own = metrics.list_ndcg(binary, k)
            case "map":
                own = metrics.list_average_precision(ranks, k, divide_by="relevant")
            case "novelty":
                own = metrics.list_novelty(share[item[top]], group[top], len(lists))
            case "serendipity":
                own = metrics.list_serendipity(hit, rank, popularity[item], group, len(lists), k, catalog=items)
            case "diversity":
                own = metrics.list_diversity(np.array(case["vectors"])[item[top]], group[top], len(lists))
            case "coverage":
                own = np.array([metrics.coverage(item[top], items)])
            case "entropy":
                own = np.array([metrics.entropy_of_exposure(np.bincount(item[top]))])
            case _:
                own = rate_lists(ranks, [k], [name])[f"{name}@{k}"]
        expected = np.array([np.nan if one is None else one for one in theirs])
        defined = np.isfinite(expected)
        np.testing.assert_allclose(own[defined], expected[defined], atol=1e-12, err_msg=key)
        compared += int(defined.sum())
    assert compared > 60


def test_values_are_those_of_scikit_learn_on_random_rows():
    random = np.random.default_rng(0)
    for _ in range(30):
        grade, score = random.integers(0, 4, 9), random.permutation(9)
        grade[0] = 1
        for k in (1, 4, 9, 20):
            own = ndcg_at_k(grade, score, [7] * 9, k, gain="linear")
            assert own == pytest.approx(ndcg_score([grade], [score], k=k))
        assert map_at_k(grade, score, [7] * 9, 9) == pytest.approx(average_precision_score(grade > 0, score))
    v = random.normal(size=(5, 3))
    assert metrics.list_diversity(v, [0] * 5)[0] == pytest.approx(cosine_distances(v)[np.triu_indices(5, 1)].mean())


def test_a_list_may_be_in_any_order_of_rows_but_not_hold_an_item_twice():
    ranks = RelevantRanks.of_items([5, 1, 6, 2], [1, 0, 1, 0], [6, 2], [1, 0], lists=2)
    assert ranks.rank.tolist() == [1, 1]
    assert RelevantRanks.of_items([], [], [1], [0], lists=1).rank.tolist() == [np.inf]
    with pytest.raises(DataError, match="item 5 twice in list 0; expected it once"):
        RelevantRanks.of_items([5, 1, 5], [0, 0, 0], [1], [0], lists=1)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: rate_lists(RelevantRanks.of_targets([1]), [0]), ConfigError, "at least 1, got 0"),
        (lambda: rate_lists(RelevantRanks.of_targets([1]), [1], ["ndgc"]), ConfigError, "did you mean 'ndcg'"),
        (lambda: metrics.list_ndcg(RelevantRanks.of_targets([1]), 1, "lin"), ConfigError, "linear"),
        (lambda: metrics.list_average_precision(RelevantRanks.of_targets([1]), 1, "k"), ConfigError, "reachable"),
        (lambda: RelevantRanks.of_targets([]), DataError, "at least one"),
        (lambda: RelevantRanks.of_items([1], [0], [1], [0], 1, [0.0]), DataError, "grades above 0"),
        (lambda: RelevantRanks.of_items([1], [1], [1], [0], 1), DataError, "numbers of lists, 0 to 0"),
        (lambda: RelevantRanks.of_items([1], [0.5], [1], [0], 1), DataError, "type float64"),
        (lambda: RelevantRanks.of_items([1, 2], [0], [1], [0], 1), DataError, "2 numbers of lists"),
    ],
)
def test_faults_are_errors(call, error, says):
    with pytest.raises(error, match=says):
        call()
    assert len(NAMES) == 6
