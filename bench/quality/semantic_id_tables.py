"""Tables of the study of semantic IDs and generators, from the finished runs of ``next_item.py``.

    python bench/quality/semantic_id_tables.py --data FOLDER [--measure ARM ...] [--lists ARM ...] [--write FILE]

It trains nothing, and leaves out what is not finished:

    1  codes and their diagnoses, then the quality of the generators of these codes beside the rule and SASRec
    2  lists merged with those of the rule and of SASRec, cut at 200, and coverage
    3  the generator without one of its members, with differences to the full model, paired by target
    4  items held out of training

Ranks under N2, lists of 200 and lists with held-out items need searches of their own. They are computed once, for
``covisit``, ``popularity`` and ``softmax``, and for the arms that ``--measure`` (ranks) and ``--lists`` name. Others
are left out until then. Under N2 only the targets whose requests differ from N1 are searched again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import code_diagnoses
import held_out_items
import item_codes
import next_item
import next_item_logs
import numpy as np
import recall
import torch
from numpy.typing import NDArray

import longrec
from longrec.metrics.next_item import rate_targets
from longrec.training.finished_run import open_run

CHEAP = ("popularity", "covisit", "softmax")
"""Arms that are measured without being named, since they need seconds."""
FULL = f"unirec_{item_codes.ABLATED}"
ABLATIONS: dict[str, str] = {
    **dict.fromkeys(("unirec_no_attribute", "unirec_level_1", "unirec_two_attributes"), FULL),
    **dict.fromkeys(("unirec_random_attribute", "unirec_no_summary", "unirec_two_codes", "unirec_encoder"), FULL),
    "tiger_like": FULL,
    "unirec_capacity": "unirec_rq_kmeans",
}
"""Arms that change one thing, and the arms that they are compared with."""
TASKS = ("beauty_n1", "beauty_n2", "beauty_n4", "office_rows")
HELD_TASK = f"beauty_{next_item_logs.HELD}"
GENERATORS = tuple(f"unirec_{codes}" for codes in item_codes.CODES)
SEED = 0
LIMITS = """Each arm has one seed. Intervals are 95 % bootstrap intervals over users, paired by target in differences:
they hold what other users would change, and not what another seed of training would. There are too few tokenizers for a
correlation of a diagnosis with quality, and none is computed. Codes from behavior come from a run of SASRec on the
training events alone, so their AUC is of pairs that SASRec was trained on."""


class Quality:
    """The ranks of the targets of test of one task, by arm. They are read, or measured where this is allowed.

    Args:
        measured: arms whose ranks may be measured.
        listed: arms whose lists may be measured.
    """

    def __init__(self, name: str, data: Path, measured: Sequence[str], listed: Sequence[str]) -> None:
        self.task, self.name, self.data = recall.Task(name, data), name, data
        self.elsewhere = self.task.trained != name
        self.measured, self.listed = measured, listed
        self._ranks: dict[str, NDArray[Any] | None] = {}

    def find_folder(self, arm: str) -> Path:
        """Return the folder of the run of an arm."""
        return next_item.WORK / "runs" / f"{self.task.trained}-{arm}-{SEED}"

    def list_arms(self, arms: Sequence[str]) -> list[str]:
        """Return the arms among these that have a finished run and ranks."""
        return [arm for arm in arms if self.find_ranks(arm) is not None]

    def find_ranks(self, arm: str) -> NDArray[Any] | None:
        """Return the rank of each target, or None."""
        if arm not in self._ranks:
            self._ranks[arm] = self._read_ranks(arm)
        return self._ranks[arm]

    def _read_ranks(self, arm: str) -> NDArray[Any] | None:
        if not (self.find_folder(arm) / "results.json").exists():
            return None
        run, lists = open_run(self.find_folder(arm)), self._find_path(arm)
        if not self.elsewhere:
            table = run.predictions()
            if not np.array_equal(table["user"].to_numpy(), self.task.user):
                raise SystemExit(f"{run.name}: its targets are not those of {self.name}")
            return table["rank"].to_numpy()
        if (next_item.WORK / "ranks" / f"{self.name}-{run.name}.npy").exists() or arm in self.measured:
            return next_item.measure_elsewhere(run, self.name, arm, self.data)
        return recall.find_targets(np.load(lists), self.task.item) if lists.exists() else None

    def find_lists(self, arm: str) -> NDArray[np.int32] | None:
        """Return the lists of an arm, int32 ``[N, 200]``, or None."""
        if not (self.find_folder(arm) / "results.json").exists():
            return None
        return self.task.list_items(arm, SEED) if self._find_path(arm).exists() or arm in self.listed else None

    def _find_path(self, arm: str) -> Path:
        return next_item.WORK / "lists" / f"{self.name}-{arm}-{SEED}.npy"

    def rate(self, arm: str) -> dict[str, NDArray[Any]]:
        """Return HR@10 and NDCG@10 of each target."""
        ranks = self.find_ranks(arm)
        assert ranks is not None
        return rate_targets(ranks, (10,))

    def describe(self, arm: str, metric: str) -> str:
        """Return a mean with its interval."""
        values = self.rate(arm)[metric]
        low, high = next_item._interval(values, self.task.user)
        return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"

    def compare(self, arm: str, other: str, metric: str) -> str:
        """Return a mean difference with its interval. Empty without the other arm."""
        if arm == other or self.find_ranks(other) is None:
            return ""
        gain = self.rate(arm)[metric] - self.rate(other)[metric]
        low, high = next_item._interval(gain, self.task.user)
        return f"{gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def write_codes(log: str, task: str, data: Path) -> list[str]:
    """Return the table of the diagnoses of the codes that finished generators of a log have."""
    names = [
        codes
        for codes in item_codes.list_codes(task)
        if (next_item.WORK / "runs" / f"{task}-unirec_{codes}-{SEED}" / "results.json").exists()
    ]
    if not names:
        return []
    rows = code_diagnoses.write_rows(names, log, data, next_item.WORK)
    return [f"## Codes of {log}", "", *_list_rows(code_diagnoses.HEAD, rows)]


def write_quality(quality: Quality) -> list[str]:
    """Return the table of the quality of the generators of a task, and a sentence on who wins."""
    arms = quality.list_arms((*CHEAP, *GENERATORS, "tiger_like"))
    generators = [arm for arm in arms if arm not in CHEAP]
    if not generators:
        return []
    head = ["arm", "HR@10", "NDCG@10", "HR@10 less covisit", "HR@10 less SASRec", "NDCG@10 less SASRec", "CPU s"]
    rows = [
        [
            *(arm, quality.describe(arm, "hr@10"), quality.describe(arm, "ndcg@10")),
            *(quality.compare(arm, "covisit", "hr@10"), quality.compare(arm, "softmax", "hr@10")),
            *(quality.compare(arm, "softmax", "ndcg@10"), _read_cpu(quality.find_folder(arm))),
        ]
        for arm in arms
    ]
    best = max(generators, key=lambda arm: float(quality.rate(arm)["hr@10"].mean()))
    sentence = [f"The best generator by HR@10 is `{best}`: {quality.describe(best, 'hr@10')}."]
    for other, title in (("covisit", "the counting rule"), ("softmax", "SASRec")):
        if other in arms:
            sentence.append(f"Less {title}: {quality.compare(best, other, 'hr@10')}, {_judge(quality, best, other)}.")
    head_line = f"## Quality on {quality.name}: {len(quality.task.rows):,} targets, `softmax` is SASRec"
    return [head_line, "", *_list_rows(head, rows), "", " ".join(sentence)]


def _judge(quality: Quality, arm: str, other: str) -> str:
    """Return whether an arm is ahead by its interval over users."""
    gain = quality.rate(arm)["hr@10"] - quality.rate(other)["hr@10"]
    low, high = next_item._interval(gain, quality.task.user)
    return "ahead" if low > 0 else "behind" if high < 0 else "not apart by this interval"


def write_unions(quality: Quality) -> list[str]:
    """Return the tables of the lists of 200, and of unions with the rule and with SASRec."""
    lists = {arm: own for arm in (*CHEAP, *next_item.GENERATED) if (own := quality.find_lists(arm)) is not None}
    generators = [arm for arm in lists if arm not in CHEAP]
    if not generators:
        return []
    item, catalog = quality.task.item, len(quality.task.log.items) - 1
    rows = []
    for arm, own in lists.items():
        figures = recall.rate(own, item, catalog)
        rows.append([arm, *(f"{figures[name]:.4f}" for name in recall.NAMES)])
    title = f"## Lists of 200 and unions on {quality.name}"
    lines = [title, "", *_list_rows(["arm", *recall.NAMES], rows), ""]
    pairs = [("covisit", "softmax"), *((other, arm) for arm in generators for other in ("covisit", "softmax"))]
    unions = [
        recall.write_union(quality.task, pair, (lists[pair[0]], lists[pair[1]]))
        for pair in pairs
        if pair[0] in lists and pair[1] in lists
    ]
    return [*lines, *_list_rows(recall.UNION_HEAD, unions)]


def write_ablations(quality: Quality) -> list[str]:
    """Return the table of the arms that change one thing, with hits of tokens under teacher forcing."""
    arms = quality.list_arms([arm for arm, other in ABLATIONS.items() if quality.find_ranks(other) is not None])
    if not arms:
        return []
    others = list(dict.fromkeys(ABLATIONS[arm] for arm in arms))
    head = ["arm", "HR@10", "NDCG@10", "compared with", "HR@10 less it", "NDCG@10 less it", "hits of tokens@3 per step"]
    rows = [
        [
            *(arm, quality.describe(arm, "hr@10"), quality.describe(arm, "ndcg@10"), ABLATIONS.get(arm, "")),
            *(quality.compare(arm, ABLATIONS.get(arm, arm), metric) for metric in ("hr@10", "ndcg@10")),
            read_token_hits(quality.find_folder(arm)),
        ]
        for arm in (*others, *arms)
    ]
    note = "Hits of tokens: share of targets whose token is among the three most probable ones, given those before it."
    return [f"## Ablations on {quality.name}", "", *_list_rows(head, rows), "", note]


def read_token_hits(folder: Path) -> str:
    """Return the hits of tokens of each step on test, or those of the best validation, which is then said."""
    run = open_run(folder)
    table = run.predictions()
    names = [name for name in table.column_names if name.startswith("token_hr@3_")]
    hits = {name: float(np.mean(table[name].to_numpy(zero_copy_only=False))) for name in names}
    source = ""
    if not hits:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        at = run.results.get("best_step")
        best = [line for line in lines if line.get("split") == "valid" and line["step"] == at]
        hits = {name: value for line in best for name, value in line.items() if name.startswith("token_hr@3_")}
        source = " (valid)"
    return ", ".join(f"{name.removeprefix('token_hr@3_')} {value:.3f}" for name, value in hits.items()) + (
        source if hits else ""
    )


def write_held_out(data: Path, listed: Sequence[str]) -> list[str]:
    """Return the table of the held-out items."""
    runs = next_item.WORK / "runs"
    arms = [arm for arm in next_item.ARMS if (runs / f"{HELD_TASK}-{arm}-{SEED}" / "results.json").exists()]
    lists = next_item.WORK / "lists"
    arms = [arm for arm in arms if arm in listed or (lists / f"{HELD_TASK}-{arm}-{SEED}-random_ties.npy").exists()]
    return [held_out_items.write_table(held_out_items.HeldOutTask(HELD_TASK, data), arms)] if arms else []


def describe_seeds() -> list[str]:
    """Return a sentence on the spread of the seeds of SASRec, if there are several."""
    folders = sorted((next_item.WORK / "runs").glob("beauty_n1-softmax-*/results.json"))
    values = [open_run(folder.parent).metrics["hr@10"].value for folder in folders]
    if len(values) < 2:
        return []
    spread = f"{min(values):.4f} to {max(values):.4f}"
    return [f"For a measure of seeds: {len(values)} of SASRec on Beauty N1 have an HR@10 from {spread}."]


def _read_cpu(folder: Path) -> str:
    path = folder / "cpu.json"
    return f"{json.loads(path.read_text())['cpu']:.0f}" if path.exists() else ""


def _list_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [recall._row(head), recall._row(["---"] * len(head)), *map(recall._row, rows)]


def write_tables(data: Path, measure: Sequence[str] = (), lists: Sequence[str] = ()) -> str:
    """Return all tables in Markdown."""
    measured, listed = (*CHEAP, *measure), (*CHEAP, *lists)
    about = (
        "`bench/quality/semantic_id_tables.py` over runs of `bench/quality/next_item.py`, longrec "
        f"{longrec.__version__}, one thread. Full ranking, ties at mid rank, model chosen by NDCG@10 on valid, test "
        "read once per run, nothing refitted."
    )
    title = "# Semantic IDs: tokenizers, unions, ablations and held-out items"
    blocks = [[title, "", about, "", LIMITS, *describe_seeds()]]
    blocks += [write_codes(task.split("_")[0], task, data) for task in ("beauty_n1", "office_rows")]
    qualities = []
    for task in TASKS:
        trained = f"{task.split('_')[0]}_n1" if task.endswith("_n2") else task
        if list((next_item.WORK / "runs").glob(f"{trained}-*/results.json")):
            qualities.append(Quality(task, data, measured, listed))
    for write in (write_quality, write_unions, write_ablations):
        blocks += [write(quality) for quality in qualities]
    blocks.append(write_held_out(data, listed))
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--measure", nargs="*", default=[], help="further arms whose ranks under N2 are computed")
    parser.add_argument("--lists", nargs="*", default=[], help="further arms whose lists are computed")
    parser.add_argument("--write", type=Path, help="file for the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = write_tables(arguments.data, arguments.measure, arguments.lists)
    print(text, flush=True)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
