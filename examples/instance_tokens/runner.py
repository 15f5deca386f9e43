"""Runs arms: writes the stores they read, trains them, finds what was done before."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import BASE, Arm, Tokens

import longrec

FIT: dict[str, Any] = {"epochs": 1, "batch_size": 512, "val_checks_per_epoch": 1}


@dataclass
class Study:
    """One log with its stores and arms.

    Attributes:
        data: the ``data`` section, without histories.
        work: where everything goes.
        history: columns of the hand-made history (it is read when an arm names columns).
        of: columns of the token history unless an arm says otherwise.
        last: length of both.
        stores: what is compressed.
        source: another log for the sources, if it is not the same.
        base: the ranker of all arms and sources.
        shelf: another study's folder, whose stores are read.
        compress: settings of every compression.
        leaky_split: the split of the source of the leaky export: train and valid together, test as it is.
    """

    data: dict[str, Any]
    work: Path
    of: tuple[str, ...]
    last: int
    stores: dict[str, Tokens]
    compress: dict[str, Any]
    leaky_split: str
    source: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None
    shelf: Path | None = None

    def run(self, name: str, arm: Arm, seed: int) -> Any:
        """The finished run of one arm and seed."""
        folder = self.work / "runs" / f"{slug(name)}-{seed}"
        if not (folder / "results.json").exists():
            began = time.perf_counter()
            begun = (folder / "config.yaml").exists()
            run = longrec.train(resume=folder) if begun else longrec.train(self.job(name, arm, seed), quiet=True)
            print(f"{folder.name}: AUC {run.metrics['auc']} in {time.perf_counter() - began:.0f} s", flush=True)
        return longrec.open_run(folder)

    def job(self, name: str, arm: Arm, seed: int) -> dict[str, Any]:
        """The config of one arm; its store is written first where it is missing."""
        data = self._data(self.data)
        histories: dict[str, Any] = {}
        last = arm.last or self.last
        if arm.history:
            histories["hand"] = {"features": list(arm.history), "max_length": last}
        if arm.tokens is not None:
            store = self.tokens(arm.tokens, seed)
            histories["tokens"] = {"from": str(store), "features": list(arm.of or self.of), "max_length": last}
            if self.stores[arm.tokens].compress.get("regime") == "leaky_checkpoint":
                histories["tokens"]["allow_leak"] = True  # the canary
        model: dict[str, Any] = dict(self.base or BASE)
        if histories:
            data["schema"]["histories"] = histories
            model = {"name": "iat_reader", "base": model, "histories": list(histories), **arm.reader}
        fit = {**FIT, **(self.fit or {}), "seed": seed, "runs": str(self.work / "runs")}
        # The tables draw users anew for all arms together; a run needs no fine intervals of its own.
        evaluate = {"n_resamples": 20}
        return {"name": f"{slug(name)}-{seed}", "data": data, "model": model, "fit": fit, "evaluate": evaluate}

    def tokens(self, name: str, seed: int) -> Path:
        """The store of a source and a seed."""
        into = (self.shelf or self.work) / "tokens" / f"{name}-{seed}"
        if (into / "source" / "source.json").exists():
            return into
        made, began = self.stores[name], time.perf_counter()
        settings = {**self.compress, **made.compress}
        source: Any = self.source_job(name, seed)
        if settings.get("regime") == "leaky_checkpoint":
            folder = self.work / "runs" / source["name"]
            if not (folder / "results.json").exists():
                # the leak it is about: a source trained on train and valid, read by a model of the same days
                longrec.train(source, ["fit.epochs=2", f"data.split={self.leaky_split}"], quiet=True)
            source = longrec.open_run(folder)
            settings = {"regime": settings["regime"]}
        written = longrec.compress(source, into, [f"{key}={value}" for key, value in settings.items()], quiet=True)
        told = " ".join(f"{one['auc']:.3f}" for one in written.versions if one["auc"])
        print(
            f"{into.name}: {written.tokens:,} tokens in {time.perf_counter() - began:.0f} s, source {told}", flush=True
        )
        return into

    def source_job(self, name: str, seed: int) -> dict[str, Any]:
        """The config of a source."""
        model = {"name": "iat", "base": dict(self.base or BASE), **self.stores[name].source}
        fit = {**FIT, **(self.fit or {}), "seed": seed, "runs": str(self.work / "runs")}
        return {
            "name": f"source-{name}-{seed}",
            "data": self._data(self.source or self.data),
            "model": model,
            "fit": fit,
        }

    def _data(self, section: dict[str, Any]) -> dict[str, Any]:
        return {**deepcopy(section), "folder": str(self.work / "prepared")}


def slug(name: str) -> str:
    """A folder name."""
    return name.replace(" + ", "-and-").replace(",", "").replace(" ", "-")
