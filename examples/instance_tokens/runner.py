"""Training of arms: writes the token stores they read, trains them, and reuses finished runs."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import BASE, Arm, TokenStoreSpec

import longrec

FIT: dict[str, Any] = {"epochs": 1, "batch_size": 512, "val_checks_per_epoch": 1}


@dataclass
class Study:
    """One log with its stores and arms.

    Attributes:
        data: the ``data`` section, without histories.
        work: folder of all output.
        token_columns: columns of the token history, if the arm names none.
        max_length: length of both histories.
        stores: token stores by name.
        source: ``data`` section of the sources, if it is another log.
        base: the ranker of all arms and sources.
        store_folder: folder of another study whose token stores are read.
        compress: settings of every compression.
        leaky_split: the split of the source of the leaky export: train and valid together, test as it is.
    """

    data: dict[str, Any]
    work: Path
    token_columns: tuple[str, ...]
    max_length: int
    stores: dict[str, TokenStoreSpec]
    compress: dict[str, Any]
    leaky_split: str
    source: dict[str, Any] | None = None
    base: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None
    store_folder: Path | None = None

    def run(self, name: str, arm: Arm, seed: int) -> Any:
        """Return the run of one arm and seed, trained if it is missing."""
        folder = self.work / "runs" / f"{make_slug(name)}-{seed}"
        if not (folder / "results.json").exists():
            began = time.perf_counter()
            begun = (folder / "config.yaml").exists()
            run = longrec.train(resume=folder) if begun else longrec.train(self.build_job(name, arm, seed), quiet=True)
            print(f"{folder.name}: AUC {run.metrics['auc']} in {time.perf_counter() - began:.0f} s", flush=True)
        return longrec.open_run(folder)

    def build_job(self, name: str, arm: Arm, seed: int) -> dict[str, Any]:
        """Build the config of one arm. Its token store is written first if it is missing."""
        data = self._copy_data(self.data)
        histories: dict[str, Any] = {}
        max_length = arm.max_length or self.max_length
        if arm.history:
            histories["hand"] = {"features": list(arm.history), "max_length": max_length}
        if arm.tokens is not None:
            store = self.write_tokens(arm.tokens, seed)
            histories["tokens"] = {
                "from": str(store),
                "features": list(arm.token_columns or self.token_columns),
                "max_length": max_length,
            }
            if self.stores[arm.tokens].compress.get("mode") == "leaky_checkpoint":
                histories["tokens"]["allow_leak"] = True  # the canary
        model: dict[str, Any] = dict(self.base or BASE)
        if histories:
            data["schema"]["histories"] = histories
            model = {"name": "iat_reader", "base": model, "histories": list(histories), **arm.reader}
        fit = {**FIT, **(self.fit or {}), "seed": seed, "runs": str(self.work / "runs")}
        # The tables resample users for all arms together, so a run needs no fine intervals.
        evaluate = {"n_resamples": 20}
        return {"name": f"{make_slug(name)}-{seed}", "data": data, "model": model, "fit": fit, "evaluate": evaluate}

    def write_tokens(self, name: str, seed: int) -> Path:
        """Return the token store of a source and a seed, and write it if it is missing."""
        into = (self.store_folder or self.work) / "tokens" / f"{name}-{seed}"
        if (into / "source" / "source.json").exists():
            return into
        spec, began = self.stores[name], time.perf_counter()
        settings = {**self.compress, **spec.compress}
        source: Any = self.build_source_job(name, seed)
        if settings.get("mode") == "leaky_checkpoint":
            folder = self.work / "runs" / source["name"]
            if not (folder / "results.json").exists():
                # the planted leak: a source trained on train and valid, read by a model of the same days
                longrec.train(source, ["fit.epochs=2", f"data.split={self.leaky_split}"], quiet=True)
            source = longrec.open_run(folder)
            settings = {"mode": settings["mode"]}
        written = longrec.compress(source, into, [f"{key}={value}" for key, value in settings.items()], quiet=True)
        aucs = " ".join(f"{one['auc']:.3f}" for one in written.versions if one["auc"])
        print(
            f"{into.name}: {written.tokens:,} tokens in {time.perf_counter() - began:.0f} s, source {aucs}", flush=True
        )
        return into

    def build_source_job(self, name: str, seed: int) -> dict[str, Any]:
        """Build the config of a source."""
        model = {"name": "iat", "base": dict(self.base or BASE), **self.stores[name].source}
        fit = {**FIT, **(self.fit or {}), "seed": seed, "runs": str(self.work / "runs")}
        return {
            "name": f"source-{name}-{seed}",
            "data": self._copy_data(self.source or self.data),
            "model": model,
            "fit": fit,
        }

    def _copy_data(self, section: dict[str, Any]) -> dict[str, Any]:
        return {**deepcopy(section), "folder": str(self.work / "prepared")}


def make_slug(name: str) -> str:
    """Convert a name to a folder name."""
    return name.replace(" + ", "-and-").replace(",", "").replace(" ", "-")
