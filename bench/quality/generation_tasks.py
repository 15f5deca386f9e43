"""Several tasks of one generator on KuaiRand-Pure: click, long view and like, then rewards and preferences.

    python bench/quality/generation_tasks.py --data FOLDER [--codes CODES.parquet] [--arms bos plain] [--seeds 1]
        [--users COUNT]
    python bench/quality/generation_tasks.py --table
    python bench/quality/generation_tasks.py --data FOLDER --toy

A log of impressions becomes a log of tasks, with one row per impression and task and the label of this task. Histories
read the rows of clicks alone. A page of the app in one hour stands for a request, because the log has none.

    popularity, covisit    floors: the most frequent targets of all tasks, and the counting rule over the history
    plain    next-token training on all tasks together
    plain_deep    the same, with the checkpoint of the best NDCG@50, since NDCG@10 stops it after two epochs
    bos      the same with a vector of the task in the input of the first step
    longer   bos, then as many steps again of next-token training: what the next ones are compared with
    rft      bos, then rewards: click 1, long view 2, like 5
    dpo      bos, then pairs of a page: like over long view over click over no click
    both     bos, then both
    strong   both, with the loss of pairs at weight 1 and beta 0.5, where the paper's are 0.15 and 0.1

Without ``--codes`` (columns ``video_id``, ``code_1``, ... as ``longrec tokenize`` writes them), codes are those of
``rq_kmeans`` over the singular vectors of the clicks of training. A finished run is not repeated. Test is read once
per run.
``--users`` takes the first so many users, whose runs are kept apart. The CPU time is estimated before anything runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from next_item import _interval
from numpy.typing import NDArray

import longrec
from longrec.features.feature_encoders import FIRST
from longrec.metrics.next_item import next_item_metrics
from longrec.models.alignment import Alignment
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.pair_accuracy import measure_pairs

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

WORK = machine.CACHE / "work" / "generation_tasks"
TASKS = ("click", "long_view", "like")
LEVELS, SIZE = 3, 64
"""Codes of an item, and codes of a level, if they are not given."""
TOY_USERS = 1_500
VALID_ROWS = 2_500
"""Targets of valid that are ranked after each epoch, drawn once."""
FLOORS = ("popularity", "covisit")
"""Arms that learn nothing, and cost seconds."""
COMPARED = {
    **dict.fromkeys(("popularity", "covisit", "plain", "plain_deep", "longer"), "bos"),
    **dict.fromkeys(("rft", "dpo", "both", "strong"), "longer"),
}
"""Arms that an arm is compared with. A second training is compared with one as long."""
PAIRS = {"pairs, test": "pair_accuracy", "pairs before": "pair_accuracy_reference"}
"""Columns of the accuracy of pairs, after and before the second training."""
COSTS = {"target": 4.2e-4, "pair_target": 7.5e-4, "search": 5.5e-3}
"""CPU seconds at the sizes of ``BASE`` on one thread: to train on a target of the log (a quarter has no history
and is left out), the same with pairs of a page, and to rank a target by a beam search."""
DELAY = "5m"
"""Time until feedback is available: longer than almost all videos play."""
BASE: dict[str, Any] = {
    **{"name": "unirec", "attributes": ["tag"], "static": False},
    **{"code_events": "join", "dropout": 0.3},
}
FIT: dict[str, Any] = {
    **{"batch_size": 512, "lr": 2e-3, "l2": 0.0, "epochs": 5, "patience": 2, "warmup_steps": 50},
    **{"schedule": {"name": "cosine", "steps": 900}, "val_checks_per_epoch": 1, "check_val_every_n_epoch": 1},
    **{"checkpoint_seconds": None},
}
"""Settings of training, chosen on valid: with a learning rate of 3e-3, no schedule and less dropout, a generator is
below the popularity floor."""
NEXT: dict[str, Any] = {"epochs": 3, "lr": 2e-4, "warmup_steps": 0, "schedule": {"name": "constant"}}
"""Settings of the second training that differ."""
REWARDS = {"is_click": 1.0, "long_view": 2.0, "is_like": 5.0}
PREFERRED = ["is_click", "long_view", "is_like"]
ARMS: dict[str, dict[str, Any]] = {
    "popularity": {"name": "popularity"},
    "covisit": {"name": "covisit"},
    "plain": BASE,
    "plain_deep": BASE,
    "bos": {**BASE, "tasks": ["task"]},
    "longer": {"rewards": REWARDS, "reward_weight": 1e-9, "dpo_weight": 0},
    "rft": {"rewards": REWARDS, "dpo_weight": 0},
    "dpo": {"levels": PREFERRED},
    "both": {"rewards": REWARDS, "levels": PREFERRED},
    "strong": {"rewards": REWARDS, "levels": PREFERRED, "dpo_weight": 1.0, "beta": 0.5},
}


def choose_users(arguments: argparse.Namespace) -> int | None:
    """Return the number of users, None for all."""
    users: int | None = TOY_USERS if arguments.toy else arguments.users
    return users


def estimate_seconds(arm: str, arguments: argparse.Namespace) -> float:
    """Return the CPU seconds of a run by ``COSTS``, if it does not stop early."""
    some = "" if (users := choose_users(arguments)) is None else f"AND user_id < {users}"
    counts = duckdb.sql(f"""
        SELECT split, sum(is_click::INT + long_view::INT + is_like::INT) AS targets
        FROM '{arguments.data}/impressions.parquet' WHERE NOT is_repeat {some} GROUP BY split
    """).fetchall()
    targets = {split: float(count) for split, count in counts}
    if arm in FLOORS:
        return 0.0
    cost = COSTS["pair_target" if "levels" in ARMS[arm] else "target"]
    epoch = targets["train"] * cost + min(targets["valid"], VALID_ROWS) * COSTS["search"]
    epochs: int = (FIT if "name" in ARMS[arm] else NEXT)["epochs"]
    return epochs * epoch + (targets["valid"] + targets["test"]) * COSTS["search"]


def build_query(data: Path, users: int | None) -> str:
    """Return the query of the log of tasks: one row per impression and task."""
    some = "" if users is None else f"AND user_id < {users}"
    return f"""
        WITH shown AS (
            SELECT *, concat_ws('-', user_id, date, hourmin, tab) AS page
            FROM '{data}/impressions.parquet' WHERE NOT is_repeat {some}
        )
        SELECT *, 'click' AS task, is_click AS took FROM shown
        UNION ALL SELECT *, 'long_view', long_view FROM shown
        UNION ALL SELECT *, 'like', is_like FROM shown
    """


def build_schema(levels: int) -> dict[str, Any]:
    """Return the schema of the log of tasks."""
    codes = [f"code_{level}" for level in range(1, levels + 1)]
    feedback = {name: {"kind": "id", "feedback": True} for name in PREFERRED}
    return {
        "user": "user_id",
        "item": "video_id",
        "time": {"column": "time_ms", "unit": "ms"},
        "request": "page",
        "label": "took",
        "label_delay": DELAY,
        "features": {
            **{"video_id": {"kind": "id"}, "task": {"kind": "id"}},
            **{name: {"kind": "id", "side": "item"} for name in ("tag", *codes)},
            **feedback,
        },
        "histories": {
            "clicks": {
                "features": ["video_id", "tag", *codes],
                "where": {"task": ["click"], "took": [1]},
                "max_length": 50,
            }
        },
    }


def write_codes(data: Path, work: Path) -> Path:
    """Write codes of all videos, from the clicks of training, and return the file. Videos without clicks are twins."""
    out, vectors = work / "tokens", work / "vectors.parquet"
    if (out / "items.parquet").exists():
        return out / "items.parquet"
    work.mkdir(parents=True, exist_ok=True)
    query = f"SELECT user_id, video_id FROM '{data}/impressions.parquet' WHERE split = 'train' AND is_click = 1"
    clicks = duckdb.sql(query).fetchnumpy()
    user, video = (torch.from_numpy(clicks[name].astype(np.int64)) for name in ("user_id", "video_id"))
    every = np.sort(duckdb.sql(f"SELECT video_id FROM '{data}/videos.parquet'").fetchnumpy()["video_id"])
    at = torch.from_numpy(np.searchsorted(every, video.numpy()))
    counts = torch.sparse_coo_tensor(torch.stack([at, user]), torch.ones(len(at)), (len(every), int(user.max()) + 1))
    torch.manual_seed(0)
    u, s, _ = torch.svd_lowrank(counts.coalesce(), q=32, niter=4)
    directions = torch.nn.functional.normalize(u * s.sqrt(), dim=1)
    pq.write_table(pa.table({"video_id": every, "vector": list(directions.numpy())}), vectors)
    config = {
        "vectors": {"items": str(vectors), "item": "video_id", "column": "vector"},
        "method": {"name": "rq_kmeans", "levels": LEVELS, "size": SIZE},
    }
    longrec.tokenize(config, into=out, quiet=True)
    return out / "items.parquet"


def build_data(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the data section."""
    data = arguments.data.resolve()
    codes, names = arguments.codes, [f"code_{level}" for level in range(1, LEVELS + 1)]
    if codes:
        names = sorted(name for name in pq.read_schema(codes).names if name.startswith("code_"))
    else:
        codes = write_codes(data, work)
    items = f"""
        SELECT video_id, coalesce(tags[1], -1) AS tag, {", ".join(names)}
        FROM '{data}/videos.parquet' JOIN '{codes}' USING (video_id)
    """
    return {
        "log": {"query": build_query(data, choose_users(arguments))},
        "items": {"query": items},
        "schema": build_schema(len(names)),
        "split": {"by": "column", "column": "split"},
        "folder": str(work / "prepared"),
    }


def run(arm: str, seed: int, arguments: argparse.Namespace, work: Path) -> Run:
    """Return the finished run of an arm. One of rewards or preferences starts from that of ``bos``."""
    folder = work / "runs" / f"{arm}-{seed}"
    if (folder / "results.json").exists():
        return open_run(folder)
    small = {"embedding_dim": 16, "layers": 1, "hidden": 16, "beam_width": 50} if arguments.toy else {}
    fit: dict[str, Any] = {"runs": str(work / "runs"), "seed": seed, "tensorboard": "off", "mlflow": "off"}
    model = dict(ARMS[arm])
    if arm not in FLOORS:
        fit |= FIT
        model |= small
    if arm == "plain_deep":
        fit |= {"monitor": "ndcg@50"}
    if "name" not in ARMS[arm]:
        base = run("bos", seed, arguments, work)
        model = {"name": "alignment", "base": {**ARMS["bos"], **small}, **ARMS[arm]}
        fit |= {**NEXT, "init_from": str(base.folder)}
    if arguments.toy and arm not in FLOORS:
        fit |= {"epochs": 2, "check_val_every_n_epoch": 1}
    config = {
        "name": folder.name,
        "data": build_data(arguments, work),
        "model": model,
        "fit": fit,
        "evaluate": {"k": [10, 50], "recall_k": [200], "seen": "keep", "n_resamples": 100, "valid_rows": VALID_ROWS},
    }
    began = time.process_time()
    finished = longrec.train(config, quiet=True)
    spent = time.process_time() - began
    trained, figures = finished.model().eval(), {"cpu": spent}
    if isinstance(trained, Alignment) and trained.levels:
        log = read_log(finished.config)
        figures |= measure_pairs(trained, log, finished.predictions()["row"].to_numpy(), "test")
    (folder / "figures.json").write_text(json.dumps(figures))
    print(f"{folder.name}: {finished.metrics}, {figures}", flush=True)
    return finished


def build_table(work: Path) -> str:
    """Return one line per arm and task, with intervals over users of the difference to its arm of ``COMPARED``."""
    folders = [folder.parent for folder in sorted(work.glob("runs/*/figures.json"))]
    runs = {folder.name: open_run(folder) for folder in folders}
    first = next(iter(runs.values()))
    log, predictions = read_log(first.config), first.predictions()
    user, task = predictions["user"].to_numpy(), read_tasks(log, predictions["row"].to_numpy())
    ranks: dict[str, list[NDArray[Any]]] = {}
    for name, one in runs.items():
        ranks.setdefault(name.rpartition("-")[0], []).append(one.predictions()["rank"].to_numpy())
    head = ("arm", "task", "seeds", "HR@10", "HR@50", "HR@200", "NDCG@10", "compared with", "HR@50 less it", *PAIRS)
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for arm in [arm for arm in ARMS if arm in ranks]:
        figures = [json.loads((work / "runs" / f"{arm}-{s}" / "figures.json").read_text()) for s in _seeds(work, arm)]
        pairs = [f"{np.mean([one[key] for one in figures]):.4f}" if key in figures[0] else "" for key in PAIRS.values()]
        for name in (*TASKS, "all"):
            rows = np.ones(len(task), bool) if name == "all" else task == name
            values = [next_item_metrics(one[rows], (10, 50), (200,)) for one in ranks[arm]]
            mean = {key: float(np.mean([one[key] for one in values])) for key in values[0]}
            other, difference = COMPARED.get(arm, ""), ""
            if other in ranks:
                hits = [np.stack(ranks[which])[:, rows] < 50 for which in (arm, other)]
                moved = hits[0].mean(0) - hits[1].mean(0)
                low, high = _interval(moved, user[rows])
                difference = f"{moved.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
            cells = [
                arm,
                name,
                str(len(values)),
                *(f"{mean[key]:.4f}" for key in ("hr@10", "hr@50", "recall@200", "ndcg@10")),
            ]
            cells.append(other if other in ranks else "")
            lines.append("| " + " | ".join([*cells, difference, *(pairs if name == "all" else ["", ""])]) + " |")
    return "\n".join(lines)


def _seeds(work: Path, arm: str) -> list[str]:
    return [folder.parent.name.rpartition("-")[2] for folder in sorted(work.glob(f"runs/{arm}-*/figures.json"))]


def read_tasks(log: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the task of each row."""
    names = np.array(log.fitted.encoders["task"].keys.values.to_pylist(), object)
    return names[log.events.columns["task"].take(rows).astype(np.int64) - FIRST]


def print_estimate(arguments: argparse.Namespace, work: Path) -> None:
    """Print the CPU time of the runs that are not finished. Arms of a second training need ``bos`` first."""
    arms = list(arguments.arms)
    if "bos" not in arms and any("name" not in ARMS[arm] for arm in arms):
        arms.insert(0, "bos")
    total = 0.0
    for seed in arguments.seeds:
        for arm in arms:
            if not (work / "runs" / f"{arm}-{seed}" / "results.json").exists():
                own = estimate_seconds(arm, arguments)
                total += own
                print(f"{arm}-{seed}: about {own / 60:.0f} CPU-minutes")
    print(f"together: about {total / 60:.0f} CPU-minutes", flush=True)


def main() -> None:
    """Run the arms, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--codes", type=Path)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--users", type=int, help="users with smaller ids than this alone")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    users = choose_users(arguments)
    work = WORK / ("toy" if arguments.toy else "all" if users is None else f"users_{users}")
    if not arguments.table and not arguments.toy:
        print_estimate(arguments, work)
    for seed in arguments.seeds if not arguments.table else ():
        for arm in arguments.arms:
            run(arm, seed, arguments, work)
    print(build_table(work))


if __name__ == "__main__":
    main()
