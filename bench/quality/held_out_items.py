"""Held-out items: whether models recommend items that training has never seen.

    python bench/quality/held_out_items.py beauty_held --data FOLDER [--arms ARM ...] [--smoothing S ...] [--write FILE]
    python bench/quality/held_out_items.py beauty_held --data FOLDER --arms ARM --smoothing 0 0.1 0.3 --valid

It reads the finished runs of ``next_item.py`` on a task with held-out items and trains nothing. All items are in the
catalog, also those that are held out. Every arm lists the 200 best items for 5,000 targets of test, drawn once. Hits
are of all targets.

    HR@k, held-out      share of the targets that are held-out items which are in the first k of their list
    HR@k, others        the same of all other targets
    share of lists      share of the held-out items among the first k of the lists; their share of the catalog is 5 %
    coverage@10         share of the catalog, and of the held-out items, that is in the first 10 of any of these lists

What knows the held-out items: the vectors of the text, whose TF-IDF and SVD are fitted to the text of all items, and
published codes, which come from the text of all items. No event of them is in training, and tokenizers are fitted
without them. Codes that only held-out items have are the token of unseen values.

Items with equal scores are in a random order, which differs between requests. A model that has never seen an item
gives all such items one score, so that their order in the table would decide. ``random`` is the expectation of a random
order of all items that a request may get. Hits of generators are those of their own test, where equal scores are at mid
rank: besides items of one path, only those that the search did not reach have equal scores.

``--smoothing`` searches with ``model.smoothing`` of a generator, which training does not read. ``--valid`` prints hits
on 2,000 rows of valid by the smoothing, to choose it there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import next_item
import next_item_logs
import numpy as np
import recall
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.config import Strict
from longrec.models.core.kinds import Retriever
from longrec.training.finished_run import open_run
from longrec.training.full_ranking import Exclusions, list_top, rank_targets

CUTS = (10, 50, 200)
LIST_ROWS = 5_000
"""Targets whose lists are measured for shares and coverage: a generator needs a search for each."""
NEAR = 1e-5
"""Scores that differ by less, relative to their size, count as equal."""


class RandomTies(Retriever):
    """A retriever whose items with equal scores are in a random order for each request."""

    Config = Strict

    def __init__(self, trained: Any) -> None:
        super().__init__(Strict(), trained.fields)
        self.trained, self.random = trained, torch.Generator().manual_seed(0)

    def loss(self, batch: Any) -> Tensor:
        """Not defined: it is trained."""
        raise NotImplementedError

    def score_catalog(self, batch: Any, catalog: Mapping[str, Any]) -> Tensor:
        """Return the scores plus noise far below their differences."""
        score_RI = self.trained.score_catalog(batch, catalog).float()
        noise_RI = torch.rand(score_RI.shape, generator=self.random)
        return score_RI + noise_RI * (score_RI.abs() * NEAR).clamp(min=1e-12)


class HeldOutTask(recall.Task):
    """The targets of test of a task with held-out items, and the lists of its runs."""

    def __init__(self, name: str, data: Path) -> None:
        super().__init__(name, data)
        held_out = next_item_logs.list_held_out(name, data)
        keys = np.array(self.log.items.keys.values.to_pylist())
        self.catalog = len(keys)
        self.is_held_out = np.append(False, np.isin(keys, held_out))
        """Of each row of the item table. Row 0 is no item."""
        self.target_held_out = self.is_held_out[self.item]
        count = min(LIST_ROWS, len(self.rows))
        self.listed = np.sort(np.random.default_rng(0).choice(len(self.rows), count, replace=False))
        """Indices of the targets whose lists are measured."""
        learned = np.concatenate([self.log.rows_of("train"), self.log.rows_of("valid")])
        if self.is_held_out[self.log.events.columns["item"].take(learned)].any():
            raise SystemExit(f"{name}: a held-out item is in training or validation")

    def open_model(self, arm: str, seed: int, smoothing: float = 0.0) -> Any:
        """Return the model of a run, which searches with a smoothing if that is not 0."""
        model: Any = open_run(next_item.WORK / "runs" / f"{self.name}-{arm}-{seed}").model()
        if smoothing:
            model.config = model.config.model_copy(update={"smoothing": smoothing})
        return model

    def list_items(self, arm: str, seed: int, smoothing: float = 0.0) -> NDArray[np.int32]:
        """Return the lists of a run for the targets ``listed``, int32 ``[n, 200]``, equal scores in a random order."""
        if arm not in next_item.GENERATED:
            return self._list_rows(arm, seed, np.arange(len(self.rows)))[self.listed]
        return self._list_rows(arm, seed, self.listed, smoothing)

    def rank_targets(self, arm: str, seed: int, smoothing: float = 0.0) -> NDArray[Any]:
        """Return the rank of each target, float or int ``[N]``, 200 or more for one that is not listed."""
        if smoothing:
            path = next_item.WORK / "ranks" / f"{self.name}-{arm}-{seed}-smoothing_{smoothing:g}.npy"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, self.search_targets(arm, seed, self.rows, smoothing))
            ranks: NDArray[Any] = np.load(path)
            return ranks
        if arm not in next_item.GENERATED:
            return recall.find_targets(self._list_rows(arm, seed, np.arange(len(self.rows))), self.item)
        table = open_run(next_item.WORK / "runs" / f"{self.name}-{arm}-{seed}").predictions()
        if not np.array_equal(table["row"].to_numpy(), self.rows):
            raise SystemExit(f"{arm}: its targets are not those of {self.name}")
        return table["rank"].to_numpy()

    def search_targets(
        self, arm: str, seed: int, rows: NDArray[np.int64], smoothing: float = 0.0
    ) -> NDArray[np.float64]:
        """Return the rank of the target of each row of the log by searches."""
        _, log, _ = next_item._open_task(self.name, self.data, arm)
        return rank_targets(self.open_model(arm, seed, smoothing), log, rows, self.job.evaluate)

    def _list_rows(self, arm: str, seed: int, chosen: NDArray[np.int64], smoothing: float = 0.0) -> NDArray[np.int32]:
        own = f"-smoothing_{smoothing:g}" if smoothing else ""
        path = next_item.WORK / "lists" / f"{self.name}-{arm}-{seed}{own}-random_ties.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _, log, _ = next_item._open_task(self.name, self.data, arm)
            model = RandomTies(self.open_model(arm, seed, smoothing))
            np.save(path, list_top(model, log, self.rows[chosen], self.job.evaluate, recall.COUNT))
        lists: NDArray[np.int32] = np.load(path)
        return lists

    def count_choices(self) -> NDArray[np.int64]:
        """Return the number of items that the list of each row may have."""
        owner, item = Exclusions(self.log, self.job.evaluate).find_seen(self.rows)
        pairs = np.unique(np.stack([owner, item], 1), axis=0)
        counts: NDArray[np.int64] = self.catalog - np.bincount(pairs[:, 0], minlength=len(self.rows))
        return counts


def write_table(task: HeldOutTask, arms: Sequence[str] | None = None, smoothings: Sequence[float] = ()) -> str:
    """Return the table of a task in Markdown."""
    held, others = task.target_held_out, ~task.target_held_out
    share = task.is_held_out.sum() / task.catalog
    head = [
        *("arm", *(f"HR@{k}, held-out" for k in CUTS), "HR@10, held-out, 95 %", *(f"HR@{k}, others" for k in CUTS)),
        *("share of lists @10", "share of lists @200", "coverage@10", "coverage@10, held-out", "HR@10, all"),
    ]
    lines = [
        f"## {task.name}: {int(held.sum()):,} targets are held-out items, {int(others.sum()):,} are others",
        "",
        f"{int(task.is_held_out.sum()):,} of {task.catalog:,} items are held out ({100 * share:.1f} %).",
        "",
        recall._row(head),
        recall._row(["---"] * len(head)),
    ]
    chance = [float((k / task.count_choices()).mean()) for k in CUTS]
    blank = [*[f"{one:.4f}" for one in chance], "", *[f"{one:.4f}" for one in chance]]
    lines.append(recall._row(["random", *blank, f"{share:.4f}", f"{share:.4f}", "", "", f"{chance[0]:.4f}"]))
    order = [arm for arm in next_item.ARMS if task.find_seeds(arm)]
    chosen = [(arm, 0.0) for arm in order if arms is None or arm in arms]
    chosen += [(arm, s) for arm, _ in chosen if arm in next_item.GENERATED for s in smoothings]
    for arm, smoothing in chosen:
        lists = task.list_items(arm, task.find_seeds(arm)[0], smoothing)
        rank = task.rank_targets(arm, task.find_seeds(arm)[0], smoothing)
        low, high = next_item._interval((rank[held] < 10).astype(float), task.user[held])
        shares = [float(task.is_held_out[lists[:, :k]].mean()) for k in (10, recall.COUNT)]
        listed = np.bincount(lists[:, :10].ravel(), minlength=task.catalog + 1)[1:] > 0
        figures = [
            *[f"{(rank[held] < k).mean():.4f}" for k in CUTS],
            f"[{low:.4f}, {high:.4f}]",
            *[f"{(rank[others] < k).mean():.4f}" for k in CUTS],
            *[f"{one:.4f}" for one in shares],
            f"{listed.mean():.4f}",
            f"{listed[task.is_held_out[1:]].mean():.4f}",
            f"{(rank < 10).mean():.4f}",
        ]
        lines.append(recall._row([f"{arm}, smoothing {smoothing:g}" if smoothing else arm, *figures]))
    return "\n".join(lines)


def write_valid(task: HeldOutTask, arms: Sequence[str], smoothings: Sequence[float]) -> str:
    """Return hits on 2,000 rows of valid by the smoothing, in Markdown. No target there is a held-out item."""
    rows = np.sort(np.random.default_rng(0).choice(task.log.rows_of("valid"), next_item.GENERATED_VALID_ROWS, False))
    lines = [recall._row(["arm", "smoothing", *(f"HR@{k}, valid" for k in CUTS)]), recall._row(["---"] * 5)]
    for arm in arms:
        for smoothing in smoothings:
            rank = task.search_targets(arm, 0, rows, smoothing)
            lines.append(recall._row([arm, f"{smoothing:g}", *(f"{(rank < k).mean():.4f}" for k in CUTS)]))
    return "\n".join(lines)


def main() -> None:
    """Print the tables of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--smoothing", nargs="*", type=float, default=[], help="further rows of generators")
    parser.add_argument("--valid", action="store_true", help="hits on valid by the smoothing, and nothing else")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--write", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = []
    for name in arguments.tasks:
        task, write = HeldOutTask(name, arguments.data), write_valid if arguments.valid else write_table
        tables.append(write(task, arguments.arms, arguments.smoothing))
    print("\n\n".join(tables), flush=True)
    if arguments.write:
        arguments.write.write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
