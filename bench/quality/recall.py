"""Recall of retrievers: the head of the list, its depth, coverage, and merged lists at one budget.

    python bench/quality/recall.py beauty_n1 [beauty_n2 movielens_n1 ...] --data FOLDER [--write FILE]

It reads the finished runs of ``next_item.py`` and trains nothing. Every arm lists the 200 best items for each target of
test. Lists are kept beside the runs.

    HR@10, NDCG@10, HR@50, HR@200   share of targets in the list, means over seeds
    coverage@10, coverage@200       share of the catalog that is in the list of any target, mean over seeds
    less the rule, less youtube_dnn difference to ``covisit``, and to the model of one vector, with 95 % intervals over
                                    users, paired by target

HR@50 by the number of events of the history says whether several interests pay where histories are longer.

A union takes items of two lists in turns until it has 200 different ones, so that it costs a ranker as much as one
list. It is compared with the list of its better source.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import next_item
import next_item_logs
import numpy as np
from numpy.typing import NDArray

from longrec.training.finished_run import open_run
from longrec.training.full_ranking import list_top

COUNT = 200
UNIONS = (
    *(("covisit", "softmax"), ("item_knn", "softmax"), ("covisit", "youtube_dnn"), ("covisit", "comirec_sa")),
    *((other, arm) for arm in next_item.GENERATED for other in ("covisit", "softmax")),
)
UNION_HEAD = ("union of", "HR@50", "HR@200", "first alone", "second alone", "HR@200 less the better alone")
ORDER = (
    *("popularity", "item_knn", "covisit", "gru4rec", "youtube_dnn", "dssm"),
    *("mind", "mind_1", "comirec_sa", "comirec_sa_1", "comirec_dr", "sdm", "softmax", "cross_entropy"),
    *next_item.GENERATED,
)
LENGTHS = (5, 10, 20, 50)
"""Largest numbers of events of the groups of histories."""
LENGTH_ARMS = ("covisit", "youtube_dnn", "mind", "mind_1", "comirec_sa", "comirec_sa_1", "softmax")


class Task:
    """The targets of test of one task, and the lists of its runs."""

    def __init__(self, name: str, data: Path) -> None:
        self.name, self.data = name, data
        self.job, self.log, rows = next_item._open_task(name, data)
        self.rows = rows["test"]
        self.item = self.log.events.columns["item"].take(self.rows).astype(np.int64)
        self.user = self.log.user(self.rows)
        self.events = self.log.compute_history_lengths("seen", self.rows)
        task = next_item_logs.build_task(name, data, next_item.WORK)
        self.trained = task.trained or name

    def find_seeds(self, arm: str) -> list[int]:
        """Return the seeds of the finished runs of an arm."""
        folders = (next_item.WORK / "runs").glob(f"{self.trained}-{arm}-*/results.json")
        return sorted(int(path.parent.name.rpartition("-")[2]) for path in folders)

    def list_items(self, arm: str, seed: int) -> NDArray[np.int32]:
        """Return the lists of a run, int32 ``[N, 200]``."""
        path = next_item.WORK / "lists" / f"{self.name}-{arm}-{seed}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            run, log = open_run(next_item.WORK / "runs" / f"{self.trained}-{arm}-{seed}"), self.log
            if arm in next_item.GENERATED or arm in next_item.EVENT_TIMES:  # whose histories have further columns
                _, log, _ = next_item._open_task(self.name, self.data, arm)
            own = path.with_name(f"{self.trained}-{arm}-{seed}.npy")
            if self.trained != self.name and own.exists():  # only requests that differ are searched again
                lists, again = np.load(own), next_item.find_other_requests(self.name, arm, self.data)
            else:
                lists, again = np.zeros((len(self.rows), COUNT), np.int32), np.arange(len(self.rows))
            model: Any = run.model()
            lists[again] = list_top(model, log, self.rows[again], self.job.evaluate, COUNT)
            np.save(path, lists)
        stored: NDArray[np.int32] = np.load(path)
        return stored

    def find_ranks(self, arm: str) -> NDArray[np.int64]:
        """Return the rank of each target by the runs of an arm, int64 ``[seeds, N]``, 200 for one not listed."""
        lists = [self.list_items(arm, seed) for seed in self.find_seeds(arm)]
        return np.array([find_targets(one, self.item) for one in lists]).reshape(-1, len(self.rows))


def find_targets(lists: NDArray[np.int32], item: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each target in its list, the length of lists for one that is not there."""
    same = lists == item[:, None]
    return np.where(same.any(1), same.argmax(1), lists.shape[1])


def merge_lists(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    """Take items of two lists in turns, each once, up to the length of one."""
    rows, count = first.shape
    both = np.stack([first, second], 2).reshape(rows, 2 * count)
    order = np.argsort(both, axis=1, kind="stable")
    ordered = np.take_along_axis(both, order, 1)
    again = np.zeros_like(both, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again | (ordered == 0), 1)
    kept = np.argsort(repeated, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(repeated, kept, 1), 0, np.take_along_axis(both, kept, 1))


def rate(lists: NDArray[np.int32], item: NDArray[np.int64], catalog: int) -> dict[str, float]:
    """Return the figures of one run."""
    rank = find_targets(lists, item)
    figures = {f"HR@{k}": float((rank < k).mean()) for k in (10, 50, COUNT)}
    figures["NDCG@10"] = float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())
    for k in (10, COUNT):
        figures[f"coverage@{k}"] = np.count_nonzero(np.bincount(lists[:, :k].ravel())[1:]) / catalog
    return figures


NAMES = ("HR@10", "NDCG@10", "HR@50", "HR@200", "coverage@10", "coverage@200")


def write_table(task: Task) -> str:
    """Return the table of a task in Markdown."""
    catalog, rule, one_vector = len(task.log.items) - 1, task.find_ranks("covisit"), task.find_ranks("youtube_dnn")
    head = ["arm", "seeds", *NAMES, "HR@10 less the rule", "HR@50 less the rule", "HR@50 less youtube_dnn"]
    lines = [
        f"## {task.name}, {len(task.rows):,} targets, {catalog:,} items",
        "",
        _row(head),
        _row(["---"] * len(head)),
    ]
    for arm in ORDER:
        seeds = task.find_seeds(arm)
        if not seeds:
            continue
        lists = [task.list_items(arm, seed) for seed in seeds]
        figures = [rate(one, task.item, catalog) for one in lists]
        mean = [f"{np.mean([one[name] for one in figures]):.4f}" for name in NAMES]
        ranks = task.find_ranks(arm)
        differences = [
            *_differences(ranks, rule, task.user, (10, 50)),
            *_differences(ranks, one_vector, task.user, (50,)),
        ]
        lines.append(_row([arm, str(len(seeds)), *mean, *differences]))
    lines += ["", _row(UNION_HEAD), _row(["---"] * len(UNION_HEAD))]
    for pair in UNIONS:
        if all(0 in task.find_seeds(arm) for arm in pair):
            lines.append(_row(write_union(task, pair, (task.list_items(pair[0], 0), task.list_items(pair[1], 0)))))
    return "\n".join([*lines, "", *_write_lengths(task)])


def write_union(task: Task, pair: tuple[str, str], lists: tuple[NDArray[np.int32], NDArray[np.int32]]) -> list[str]:
    """Return the cells of the union of two lists, under ``UNION_HEAD``."""
    union, *alone = (find_targets(one, task.item) for one in [merge_lists(*lists), *lists])
    hits = [float((rank < COUNT).mean()) for rank in alone]
    better = alone[int(np.argmax(hits))][None]
    own = [f"{(union < 50).mean():.4f}", f"{(union < COUNT).mean():.4f}", *(f"{hit:.4f}" for hit in hits)]
    return [" and ".join(pair), *own, *_differences(union[None], better, task.user, (COUNT,))]


def _write_lengths(task: Task) -> list[str]:
    """Return a table of HR@50 by the number of events of the history, mean over seeds."""
    group = np.searchsorted(LENGTHS, task.events)
    counts = np.bincount(group, minlength=len(LENGTHS) + 1)
    names = ["up to 5", "6 to 10", "11 to 20", "21 to 50", "more"]
    head = ["HR@50 by events of the history", *(f"{name}: {count:,}" for name, count in zip(names, counts) if count)]
    lines = [_row(head), _row(["---"] * len(head))]
    for arm in LENGTH_ARMS:
        if task.find_seeds(arm):
            hits = (task.find_ranks(arm) < 50).mean(0)
            values = [f"{hits[group == at].mean():.4f}" for at in range(len(counts)) if counts[at]]
            lines.append(_row([arm, *values]))
    return lines


def _differences(ranks: NDArray[Any], other: NDArray[Any], user: NDArray[Any], cuts: Sequence[int]) -> list[str]:
    """Return the mean differences of hits, with intervals. Empty for an arm and itself, or without another one."""
    if not len(other) or (ranks.shape == other.shape and (ranks == other).all()):
        return [""] * len(cuts)
    texts = []
    for k in cuts:
        gain = (ranks < k).mean(0) - (other < k).mean(0)
        low, high = next_item._interval(gain, user)
        texts.append(f"{gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
    return texts


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--write", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    tables = []
    for name in arguments.tasks:
        tables.append(write_table(Task(name, arguments.data)))
        print(tables[-1], flush=True)
    if arguments.write:
        arguments.write.write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
