"""Click model of KuaiRand-Pure that ``exploration_simulation.py`` takes for the truth: DeepFM, days 1 to 7 of the log.

    python bench/quality/exploration_click_model.py --data FOLDER

It reads users, pages of the app and videos, and no history. A tenth of the rows of these days calibrates it (Platt
1999). AUC and calibration are those of day 8, for the videos that it covers: those with ``LEAST`` rows in the days.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import torch
from numpy.typing import NDArray

from longrec.features.batch import Batch, Layout
from longrec.features.fields import Field, Fields
from longrec.metrics import auc, log_loss
from longrec.models.core.kinds import Ranker
from longrec.models.deepfm import DeepFM
from longrec.training.optimizers import build_optimizers
from longrec.training.settings import FitConfig

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import machine

WORK = machine.CACHE / "work" / "exploration"
LAST_DAY, NEXT_DAY, LEAST, EPOCHS = 20220501, 20220502, 10, 2
USER = {
    "active": "user_active_degree",
    "follows": "follow_user_num_range",
    "fans": "fans_user_num_range",
    "friends": "friend_user_num_range",
    "registered": "register_days_range",
    **{f"category_{number}": f"onehot_feat{number}" for number in (0, 1, 2, 6, 7, 8, 9)},
}
VIDEO = {
    "author": "author_id",
    "type": "video_type",
    "upload": "upload_type",
    "tag": "tags[1]",
    "music": "music_id",
    "duration": "round(2 * log2(greatest(coalesce(video_duration, 0), 1000)))",
}
Ids = NDArray[np.int32]


def _number(values: NDArray[Any]) -> tuple[Ids, int]:
    """Return the ids of values as rows of a table, and the rows of the table. Missing values are one value."""
    _, index = np.unique(np.array([str(value) for value in values]), return_inverse=True)
    return (index + 2).astype(np.int32), int(index.max()) + 3


@dataclass
class ClickModel:
    """A fitted click model with the tables and the log that it was fitted on.

    Attributes:
        users: ``[U]`` ids per feature of the user.
        items: ``[I]`` ids per feature of the video, of the covered videos.
        log: rows of days 1 to 7 with a covered video, by time: ``user`` and ``video`` (indices), ``tab``, ``label``.
        later: the same of day 8.
        sizes: rows of the table of each feature.
        net: the fitted net.
        platt: scale and shift of its logit.
        report: AUC and calibration on day 8.
    """

    users: dict[str, Ids]
    items: dict[str, Ids]
    log: dict[str, NDArray[Any]]
    later: dict[str, NDArray[Any]]
    sizes: dict[str, int]
    net: Ranker
    platt: tuple[float, float] = (1.0, 0.0)
    report: dict[str, float] | None = None

    @classmethod
    @cache
    def open(cls, data: Path) -> ClickModel:
        """Return the fitted model of a folder of the log. It is fitted once."""
        model = cls(*read_log(data))
        path = WORK / "click_model.npz"
        if not path.exists():
            model.fit()
            path.parent.mkdir(parents=True, exist_ok=True)
            weights = {name: value.numpy() for name, value in model.net.state_dict().items()}
            np.savez(path, platt=model.platt, **weights)
            (WORK / "click_model.json").write_text(json.dumps(model.report))
        with np.load(path) as stored:
            weights = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "platt"}
            model.platt = tuple(stored["platt"].tolist())
        model.net.load_state_dict(weights)
        model.report = json.loads((WORK / "click_model.json").read_text())
        return model

    def fit(self) -> None:
        """Fit the net on nine tenths of the rows and the calibration on the others. Then measure it on day 8."""
        random = np.random.default_rng(0)
        held = random.random(len(self.log["label"])) < 0.1
        optimizers = build_optimizers(self.net, FitConfig(lr=1e-3, l2=1e-5))
        self.net.train()
        for _ in range(EPOCHS):
            for rows in np.array_split(random.permutation(np.flatnonzero(~held)), (~held).sum() // 512):
                for optimizer in optimizers.values():
                    optimizer.zero_grad(set_to_none=True)
                self.net.loss(self._batch(self.log, rows)).backward()
                for optimizer in optimizers.values():
                    optimizer.step()
        self.net.eval()
        rows = np.flatnonzero(held)
        z, y = torch.from_numpy(self._logit(self.log, rows)).double(), torch.from_numpy(self.log["label"][rows])
        scale = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        search = torch.optim.LBFGS([scale], max_iter=50)

        def evaluate() -> torch.Tensor:
            search.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scale[0] * z + scale[1], y.double())
            loss.backward()
            return loss

        search.step(evaluate)
        self.platt = float(scale.detach()[0]), float(scale.detach()[1])
        rows = np.arange(len(self.later["label"]))
        p, label = self._calibrate(self._logit(self.later, rows)), self.later["label"]
        edges = np.quantile(p, np.linspace(0, 1, 11)[1:-1])
        tenth = np.searchsorted(edges, p)
        gaps = [abs(p[tenth == number].mean() - label[tenth == number].mean()) for number in range(10)]
        self.report = {
            "rows": float(len(self.log["label"])),
            "videos": float(len(self.items["video"])),
            "rows_day_8": float(len(p)),
            "auc": auc(label, p),
            "log_loss": log_loss(label, p),
            "pcoc": float(p.mean() / label.mean()),
            "ece": float(np.mean(gaps)),
            "platt_scale": self.platt[0],
        }

    def _calibrate(self, logit: NDArray[np.float32]) -> NDArray[np.float32]:
        p: NDArray[np.float32] = 1 / (1 + np.exp(-(np.float32(self.platt[0]) * logit + np.float32(self.platt[1]))))
        return p

    def _batch(self, log: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> Batch:
        user, video = log["user"][rows], log["video"][rows]
        requests = {name: torch.from_numpy(values[user]) for name, values in self.users.items()}
        requests["tab"] = torch.from_numpy(log["tab"][rows])
        items = {name: torch.from_numpy(values[video]) for name, values in self.items.items()}
        return Batch(Layout.single(len(rows)), requests, items, label=torch.from_numpy(log["label"][rows]))

    def _logit(self, log: dict[str, NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.no_grad():
            pieces = [
                self.net(self._batch(log, piece)).numpy() for piece in np.array_split(rows, len(rows) // 4096 + 1)
            ]
        return np.concatenate(pieces)

    def predict_candidates(
        self, user: NDArray[np.int64], tab: Ids, candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the probability ``[R, K]`` that each user clicks each candidate on this page of the app."""
        owner = np.repeat(np.arange(len(user)), candidates.shape[1])
        requests = {name: torch.from_numpy(values[user]) for name, values in self.users.items()}
        requests["tab"] = torch.from_numpy(tab)
        items = {name: torch.from_numpy(values[candidates.ravel()]) for name, values in self.items.items()}
        with torch.no_grad():
            logit = self.net(Batch(Layout.grouped(len(user), owner), requests, items)).numpy()
        return self._calibrate(logit).reshape(candidates.shape)


def read_log(
    data: Path,
) -> tuple[dict[str, Ids], dict[str, Ids], dict[str, NDArray[Any]], dict[str, NDArray[Any]], dict[str, int], Ranker]:
    """Return the attributes of a click model, with an untrained net."""
    users = duckdb.sql(f"SELECT user_id, {_list(USER)} FROM '{data}/users.parquet' ORDER BY user_id").fetchnumpy()
    shown = f"(SELECT * FROM '{data}/impressions.parquet' WHERE NOT is_repeat)"
    covered = f"SELECT video_id FROM {shown} WHERE date <= {LAST_DAY} GROUP BY 1 HAVING count(*) >= {LEAST}"
    videos = duckdb.sql(
        f"SELECT video_id, {_list(VIDEO)} FROM '{data}/videos.parquet' WHERE video_id IN ({covered}) ORDER BY video_id"
    ).fetchnumpy()
    rows = duckdb.sql(f"""
        SELECT user_id, video_id, date, tab, is_click FROM {shown}
        WHERE date <= {NEXT_DAY} AND video_id IN ({covered}) ORDER BY time_ms, user_id, video_id
    """).fetchnumpy()
    user_ids, video_ids = (np.ma.getdata(table[key]) for table, key in ((users, "user_id"), (videos, "video_id")))
    sizes: dict[str, int] = {}
    columns: dict[str, Ids] = {}
    for table, names in ((users, USER), (videos, VIDEO)):
        for name in names:
            columns[name], sizes[name] = _number(table[name])
    columns["id"], sizes["id"] = _number(user_ids)
    columns["video"], sizes["video"] = (np.arange(len(video_ids)) + 2).astype(np.int32), len(video_ids) + 2
    tab, sizes["tab"] = _number(rows["tab"])
    every = {
        "user": np.searchsorted(user_ids, rows["user_id"]),
        "video": np.searchsorted(video_ids, rows["video_id"]),
        "tab": tab,
        "label": rows["is_click"].astype(np.float32),
    }
    early = np.ma.getdata(rows["date"]) <= LAST_DAY
    log, later = ({name: np.ma.getdata(values)[which] for name, values in every.items()} for which in (early, ~early))
    own = {name: columns[name] for name in ("id", *USER)}
    items = {name: columns[name] for name in ("video", *VIDEO)}
    features = [*(Field(name, "id", sizes[name], side="user") for name in own), Field("tab", "id", sizes["tab"])]
    features += [Field(name, "id", sizes[name], side="item") for name in items]
    net = DeepFM(Fields(tuple(features), {}), embedding_dim=16, mlp=(128, 64), seed=0)
    return own, items, log, later, sizes, net.eval()


def _list(columns: dict[str, str]) -> str:
    return ", ".join(f"{expression} AS {name}" for name, expression in columns.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    print(json.dumps(ClickModel.open(parser.parse_args().data).report, indent=1))
