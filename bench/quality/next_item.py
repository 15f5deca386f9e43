"""Next-item recommendation: popularity, nearest neighbors, the counting rule, retrievers that learn, and a blend.

    python bench/quality/next_item.py beauty_n1 toys_n1 [--arms covisit softmax] [--seeds 3] [--data FOLDER]
    python bench/quality/next_item.py --blend beauty_n1 beauty_n2
    python bench/quality/next_item.py --table

Tasks are a log and a protocol (``next_item_logs.py``). A finished run is not repeated, and test is read once per run. A
task such as ``beauty_n2`` also measures the runs of ``beauty_n1``, whose requests then hold earlier days only.
``--blend`` adds the scores of the counting rule and of SASRec; the weight is chosen on 6,000 rows of valid.
``--table`` prints all tasks, with intervals over users of the difference to the counting rule, paired by target.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import item_codes
import next_item_logs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import longrec
from longrec.config import Strict
from longrec.metrics.next_item import next_item_metrics
from longrec.models.core.kinds import Retriever
from longrec.training.finished_run import Run, open_run, read_log
from longrec.training.full_ranking import rank_targets

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

WORK = machine.CACHE / "work" / "next_item"
SASREC = {"name": "sasrec"}
COSINE = {"dropout": 0.5, "cosine": True, "temperature": 0.07}
ARMS: dict[str, dict[str, Any]] = {
    "popularity": {"name": "popularity"},
    "item_knn": {"name": "item_knn"},
    "covisit": {"name": "covisit"},
    "softmax": SASREC,
    "past_baskets": SASREC,
    "bce": {**SASREC, "loss": "bce"},
    "gbce": {**SASREC, "loss": "gbce", "negatives": 256},
    "cross_entropy": {**SASREC, "loss": "cross_entropy"},
    "gru4rec": {"name": "gru4rec", **COSINE},
    "mind": {"name": "mind", "mlp": None, **COSINE},
    "mind_1": {"name": "mind", "mlp": None, "interests": 1, **COSINE},
    "comirec_sa": {"name": "comirec", "positions": 50, **COSINE},
    "comirec_sa_1": {"name": "comirec", "positions": 50, "interests": 1, **COSINE},
    "comirec_dr": {"name": "comirec", "positions": 50, "extractor": "dr", "dropout": 0.5, "temperature": 0.1},
    "sdm": {"name": "sdm", "dropout": 0.5, "session_events": 20},
    "youtube_dnn": {"name": "youtube_dnn"},
    "dssm": {"name": "dssm"},
    "hstu": {"name": "hstu_next_item"},
    "hstu_cross_entropy": {"name": "hstu_next_item", "loss": "cross_entropy"},
}
GENERATOR = {"name": "unirec", "attributes": [item_codes.ATTRIBUTE], "dropout": 0.3, "code_events": "join"}
GENERATED: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"unirec_{codes}": (codes, {}) for codes in item_codes.CODES},
    "unirec_no_attribute": (item_codes.ABLATED, {"attributes": []}),
    "unirec_level_1": (item_codes.ABLATED, {"attributes": [item_codes.LEVEL_1]}),
    "unirec_two_attributes": (item_codes.ABLATED, {"attributes": [item_codes.LEVEL_1, item_codes.ATTRIBUTE]}),
    "unirec_random_attribute": (item_codes.ABLATED, {"attributes": [item_codes.RANDOM]}),
    "unirec_no_summary": (item_codes.ABLATED, {"pairs": []}),
    "unirec_encoder": (item_codes.ABLATED, {"attributes": [], "encoder_layers": 1, "dropout": 0.4}),
    "unirec_two_codes": (item_codes.ABLATED, {"codes": ["code_1", "code_2"]}),
    "tiger_like": (
        item_codes.ABLATED,
        {"attributes": [], "pairs": [], "head": "linear", "self_attention": True, "encoder_layers": 2},
    ),
}
"""Generators: their codes (``item_codes.py``), and their settings besides ``GENERATOR``."""
ARMS |= {arm: {**GENERATOR, **settings} for arm, (_, settings) in GENERATED.items()}
FLOORS = ("popularity", "item_knn", "covisit")
FIT: dict[str, Any] = {
    **{"batch_size": 900, "lr": 1e-3, "betas": [0.9, 0.98], "l2": 0.0, "epochs": 100, "patience": 4},
    **{"val_checks_per_epoch": 1, "check_val_every_n_epoch": 2, "checkpoint_seconds": None},
}
ARM_FIT: dict[str, dict[str, Any]] = {
    "gru4rec": {"lr": 5e-3},
    "mind": {"lr": 3e-3},
    "mind_1": {"lr": 3e-3},
    "comirec_sa": {"lr": 2e-3},
    "comirec_sa_1": {"lr": 2e-3},
    "comirec_dr": {"lr": 2e-3},
    "sdm": {"lr": 2e-3},
    **dict.fromkeys(
        GENERATED,
        {
            **{"batch_size": 512, "epochs": 12, "patience": 3, "lr": 2e-3, "warmup_steps": 100},
            **{"schedule": {"name": "cosine", "steps": 3100}},
        },
    ),
}
ARM_FIT["unirec_encoder"] = {
    **ARM_FIT["unirec_no_attribute"],
    **{"epochs": 16, "schedule": {"name": "cosine", "steps": 4100}},
}
"""Settings of training that differ for an arm. They were chosen on valid of Beauty N1."""
MOVIELENS: dict[str, Any] = {"epochs": 60, "batch_size": 8192}
MOVIELENS_N1_EPOCHS = 20
"""A third of those of N4, to bound the time of a study."""
MOVIELENS_FIT: dict[str, dict[str, Any]] = {
    "hstu": {"epochs": 101, "batch_size": 14_000, "patience": 5},  # about 128 users, as in the code of the paper
    "hstu_cross_entropy": {"epochs": 12, "batch_size": 2048, "patience": 5},
    "mind": {"epochs": 10, "batch_size": 4096},
    "sdm": {"epochs": 10},
    "comirec_dr": {"epochs": 10, "batch_size": 4096},
}
"""Shorter training of the arms whose epochs cost most on MovieLens, and batches that fit into memory."""
OFFICE_FIT: dict[str, Any] = {"epochs": 40, "schedule": {"name": "cosine", "steps": 760}, "check_val_every_n_epoch": 4}
"""Training of generators on Office, whose epochs have 19 batches."""
MOVIELENS_VALID_ROWS = 20_000
"""Rows of valid of MovieLens that are measured. All 100,000 of N4 cost more than training."""
GENERATED_VALID_ROWS = 2_000
"""Rows of valid that a generator is measured on after each epoch: a beam search costs more than scores of vectors."""
MOVIELENS_MODELS: dict[str, dict[str, Any]] = {"sasrec": {"layers": 2}, "comirec": {"positions": 200}}
"""Settings of models that differ on MovieLens, where most histories have 200 events. Chosen on valid of N4."""
MOVIELENS_CATALOG: dict[str, Any] = {"batch_size": 2048, "patience": 3}
"""Settings of cross entropy on MovieLens, whose scores of all items need a smaller batch."""
EVENT_TIMES = dict.fromkeys(("hstu", "hstu_cross_entropy"), ["time_gap", "time_since_previous"])
"""Columns of the history that an arm reads besides the item: HSTU's bias of time."""
BLENDS = [(share, heat) for heat in (1.0, 2.0) for share in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)]


def run(name: str, arm: str, seed: int, data: Path) -> Run:
    """Return the finished run of an arm."""
    folder = WORK / "runs" / f"{name}-{arm}-{seed}"
    if (folder / "results.json").exists():
        return open_run(folder)
    task = next_item_logs.build_task(name, data, WORK)
    fit: dict[str, Any] = {"runs": str(WORK / "runs"), "seed": seed, "tensorboard": "off", "mlflow": "off"}
    model, evaluate = choose_model(name, arm), {**task.evaluate, "n_resamples": 100}
    if arm not in FLOORS:
        fit |= FIT | ARM_FIT.get(arm, {})
        if arm == "past_baskets":
            fit["ties"] = "order"
        if name.startswith("movielens"):
            fit |= MOVIELENS | ({"epochs": MOVIELENS_N1_EPOCHS} if name == "movielens_n1" else {})
            fit |= MOVIELENS_FIT.get(arm, {})
            fit |= MOVIELENS_CATALOG if arm == "cross_entropy" else {}
            if model["name"] != "hstu_next_item":  # whose default is that of MovieLens
                model |= {"dropout": 0.2}
            evaluate["valid_rows"] = MOVIELENS_VALID_ROWS
            model |= MOVIELENS_MODELS.get(model["name"], {})
        if arm in ("bce", "gbce"):  # bce learns slowly, with one negative per target
            epochs = 80 if name.startswith("movielens") else 300
            fit |= {"patience": 10 if arm == "bce" else 3, "epochs": epochs, "check_val_every_n_epoch": 5}
        if arm in GENERATED:
            evaluate["valid_rows"] = GENERATED_VALID_ROWS
            fit |= OFFICE_FIT if name.startswith("office") else {}
    config = {
        "name": folder.name,
        "data": build_data(name, arm, data),
        "model": model,
        "fit": fit,
        "evaluate": evaluate,
    }
    began = time.process_time()
    longrec.train(config, quiet=True)
    (folder / "cpu.json").write_text(json.dumps({"cpu": time.process_time() - began}))
    finished = open_run(folder)
    values = {key: round(one.value, 4) for key, one in finished.metrics.items()}
    print(
        f"{folder.name}: {values}, {time.process_time() - began:.0f} CPU s, best {finished.results['best_step']}",
        flush=True,
    )
    return finished


def choose_model(name: str, arm: str) -> dict[str, Any]:
    """Return the ``model`` section of an arm. Items of Office have no attributes."""
    model = dict(ARMS[arm])
    return {**model, "attributes": []} if name.startswith("office") and arm in GENERATED else model


def build_data(name: str, arm: str, data: Path) -> dict[str, Any]:
    """Return the ``data`` section of an arm."""
    own = next_item_logs.build_task(name, data, WORK).data
    schema = own["schema"]
    seen = schema["histories"]["seen"]
    if arm in EVENT_TIMES:
        seen = {**seen, "features": ["item_id", *EVENT_TIMES[arm]]}
        return {**own, "schema": {**schema, "histories": {"seen": seen}}, "folder": str(WORK / "prepared-times")}
    if arm not in GENERATED:
        return {**own, "folder": str(WORK / "prepared")}
    codes, attributes = GENERATED[arm][0], choose_model(name, arm)["attributes"]
    items, levels = item_codes.write_items(codes, name, data, WORK)
    names = [*attributes, *levels]
    features = {**schema["features"], **{one: {"kind": "id", "side": "item"} for one in names}}
    histories = {"seen": {**seen, "features": ["item_id", *names]}}
    folder, log = WORK / f"prepared-{codes}-{'-'.join(attributes) or 'codes'}", own["log"]
    if "columns" in seen:  # rows that bring their histories
        histories["seen"]["columns"] = {one: f"hist_{one}" for one in histories["seen"]["features"]}
        log = str(next_item_logs.join_histories(Path(log), items, names, WORK / f"{name}-{codes}.parquet"))
    return {
        **own,
        "log": log,
        "items": str(items),
        "schema": {**schema, "features": features, "histories": histories},
        "folder": str(folder),
    }


def list_arms(name: str) -> list[str]:
    """Return the arms that a task can have: a generator needs codes of its items, and an arm of times a log of them."""
    codes, has_times = item_codes.list_codes(name), not name.endswith(f"_{next_item_logs.ROWS}")
    arms = [arm for arm in ARMS if arm not in EVENT_TIMES or has_times]
    return [arm for arm in arms if arm not in GENERATED or GENERATED[arm][0] in codes]


def measure_elsewhere(trained: Run, name: str, arm: str, data: Path) -> NDArray[np.float32]:
    """Return the ranks of a run on the test rows of another task over the same events.

    Only targets whose requests differ are ranked again.
    """
    out = WORK / "ranks" / f"{name}-{trained.name}.npy"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        job, log, rows = _open_task(name, data, arm)
        ranks = trained.predictions()["rank"].to_numpy().astype(np.float32)
        again = find_other_requests(name, arm, data)
        ranks[again] = rank_targets(trained.model(), log, rows["test"][again], job.evaluate)  # type: ignore[arg-type]
        np.save(out, ranks)
        print(f"{out.stem}: {next_item_metrics(ranks)}", flush=True)
    measured: NDArray[np.float32] = np.load(out)
    return measured


def find_other_requests(name: str, arm: str, data: Path) -> NDArray[np.int64]:
    """Return the indices of the targets whose history has other events in a task than in the task it is trained on.

    The events before a target are the same in both, and a strict history leaves out the newest ones. So a history with
    as many events, before its maximum length, is the same. An arm that reads times has other requests everywhere.
    """
    trained = next_item_logs.build_task(name, data, WORK).trained
    logs = [_open_task(task, data, arm) for task in (name, trained)]
    (_, log, rows), (_, other, other_rows) = ((job, one, own["test"]) for job, one, own in logs)
    for one in ("user", "item"):
        columns = [log.user(rows), other.user(other_rows)]
        if one == "item":
            columns = [log.events.columns[one].take(rows), other.events.columns[one].take(other_rows)]
        if not np.array_equal(*columns):
            raise SystemExit(f"{name} and {trained} have other targets")
    ranges = [log.history_range("seen", rows), other.history_range("seen", other_rows)]
    lengths = [stop - first for first, stop in ranges]
    return np.flatnonzero(np.ones(len(rows), bool) if arm in EVENT_TIMES else lengths[0] != lengths[1])


def _open_task(name: str, data: Path, arm: str = "covisit") -> tuple[Any, Any, dict[str, NDArray[np.int64]]]:
    """Return job, log and rows by split of a task, with the columns that an arm reads."""
    from longrec.training.job import read_job

    task = next_item_logs.build_task(name, data, WORK)
    job = read_job({"data": build_data(name, arm, data), "model": "covisit", "evaluate": task.evaluate})
    log = read_log(job)
    return job, log, {split: log.rows_of(split) for split in ("valid", "test")}


class Blend(Retriever):
    """Weighted sum of the distribution of a trained retriever and the normalized scores of a rule.

    Items of the history get no share of either, since they are left out of the ranking.
    """

    Config = Strict

    def __init__(self, trained: Any, rule: Any, share: float, heat: float) -> None:
        super().__init__(Strict(), trained.fields)
        self.trained, self.rule, self.share, self.heat = trained, rule, share, heat

    def loss(self, batch: Any) -> Tensor:
        """Not defined: both are trained."""
        raise NotImplementedError

    def score_catalog(self, batch: Any, catalog: Mapping[str, Any]) -> Tensor:
        """Return ``(1 - share) softmax(z / heat) + share r / sum(r)``."""
        history = batch.histories["seen"]
        seen = torch.zeros(len(history.offsets) - 1, int(catalog["item_id"].max()) + 1, dtype=torch.bool)
        owner = torch.repeat_interleave(torch.arange(len(seen)), history.offsets.diff())
        seen[owner, history.columns["item_id"].long().clamp(max=seen.shape[1] - 1)] = True
        seen = seen[:, catalog["item_id"].long()]
        first = self.trained.score_catalog(batch, catalog).masked_fill(seen, -torch.inf)
        second = self.rule.score_catalog(batch, catalog).masked_fill(seen, 0)
        second = second / second.sum(1, keepdim=True).clamp(min=1e-9)
        return (1 - self.share) * (first / self.heat).softmax(1) + self.share * second


def blend(name: str, seed: int, data: Path) -> None:
    """Rank test by the blend of the counting rule and of sampled softmax, with the weight chosen on valid."""
    out = WORK / "ranks" / f"{name}-blend-{seed}.npy"
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    job, log, rows = _open_task(name, data)
    own = next_item_logs.build_task(name, data, WORK).trained or name
    trained, rule = run(own, "softmax", seed, data).model(), run(own, "covisit", 0, data).model()
    chosen = np.sort(np.random.default_rng(0).choice(rows["valid"], min(6_000, len(rows["valid"])), replace=False))
    scores = {}
    for share, heat in BLENDS:
        ranks = rank_targets(Blend(trained, rule, share, heat), log, chosen, job.evaluate)
        scores[share, heat] = next_item_metrics(ranks)["ndcg@10"]
    best = max(scores, key=lambda pair: scores[pair])
    ranks = rank_targets(Blend(trained, rule, *best), log, rows["test"], job.evaluate)
    np.save(out, ranks)
    print(f"{out.stem}: share, heat {best}, valid {scores[best]:.4f}, test {next_item_metrics(ranks)}", flush=True)


def table(data: Path) -> str:
    """Return one table per task: means over the seeds, and paired intervals of the difference to the rule."""
    blocks = []
    tasks = sorted({path.parent.name.rpartition("-")[0].rpartition("-")[0] for path in WORK.glob("runs/*/cpu.json")})
    for name in tasks:
        rule = run(name, "covisit", 0, data).predictions()
        user = rule["user"].to_numpy()
        lines = ["| arm | seeds | HR@10 | NDCG@10 | HR@10 less the rule | recall@200 | CPU s |", "| --- " * 7 + "|"]
        arms: dict[str, list[NDArray[Any]]] = {}
        cpu: dict[str, list[float]] = {}
        for folder in sorted(WORK.glob(f"runs/{name}-*")):
            if (folder / "cpu.json").exists():
                arm = folder.name.split("-")[1]
                arms.setdefault(arm, []).append(open_run(folder).predictions()["rank"].to_numpy())
                cpu.setdefault(arm, []).append(json.loads((folder / "cpu.json").read_text())["cpu"])
        for path in sorted(WORK.glob(f"ranks/{name}-*.npy")):
            arms.setdefault(path.stem.split("-", 1)[1].rpartition("-")[0], []).append(np.load(path))
        for arm in [*(arm for arm in ARMS if arm in arms), *(arm for arm in arms if arm not in ARMS)]:
            ranks = np.stack(arms[arm])
            hits = (ranks < 10).mean(0) - (rule["rank"].to_numpy() < 10)
            figures = [next_item_metrics(one, recall_k=(200,)) for one in ranks]
            mean = {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}
            low, high = _interval(hits, user)
            spent = f"{np.mean(cpu[arm]):.0f}" if arm in cpu else ""
            difference = "" if arm == "covisit" else f"{hits.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
            lines.append(
                f"| {arm} | {len(ranks)} | {mean['hr@10']:.4f} | {mean['ndcg@10']:.4f} | {difference} | "
                f"{mean['recall@200']:.4f} | {spent} |"
            )
        blocks.append("\n".join([f"## {name}, {len(user):,} targets", "", *lines]))
    return "\n\n".join(blocks)


def _interval(values: NDArray[Any], user: NDArray[Any]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over rows, over users."""
    _, owner = np.unique(user, return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    random, draws = np.random.default_rng(0), []
    for _ in range(1_000):
        drawn = random.integers(0, len(sums), len(sums))
        draws.append(sums[drawn].sum() / counts[drawn].sum())
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def main() -> None:
    """Run the arms of the tasks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--arms", nargs="*", help="default: all that the task can have")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--blend", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        print(table(arguments.data))
        return
    for name in arguments.tasks:
        trained, possible = next_item_logs.build_task(name, arguments.data, WORK).trained, list_arms(name)
        if odd := sorted(set(arguments.arms or ()) - set(possible)):
            raise SystemExit(f"{name} has no {', '.join(odd)}; it has {', '.join(possible)}")
        for seed in arguments.seeds:
            if arguments.blend:
                blend(name, seed, arguments.data)
                continue
            for arm in arguments.arms or possible:
                if arm not in FLOORS or not seed:
                    run(name, arm, seed, arguments.data)
                if trained and (WORK / "runs" / f"{trained}-{arm}-{seed}" / "results.json").exists():
                    measure_elsewhere(open_run(WORK / "runs" / f"{trained}-{arm}-{seed}"), name, arm, arguments.data)


if __name__ == "__main__":
    main()
