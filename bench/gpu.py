"""Training on one GPU beside the CPU: AUC, rows per second, time in kernels, waits. For a machine without a network.

    python bench/gpu.py --pack gpu-pack                # where there is a network: wheels and MovieLens-1M, prepared
    python bench/gpu.py --carried gpu-pack             # on the machine with the GPU, from a copy of the repository
    python bench/gpu.py --carried gpu-pack --cpu-only --seconds 60        # the same without a GPU, to try it

The machine needs Python 3.12, torch, numpy and pyarrow. What else is missing there is taken from the wheels. All of it
takes less than ``--seconds``:

1. DIN, DIEN and BST on MovieLens-1M, the same number of steps on both devices. AUC may differ by twice what the seed
   changes (0.0016). Rows per second from step 5 on, without validation.
2. Share of a step in which the GPU computes, and the kernels with most of the time.
3. Loss and gradients of every model and variant against the CPU, and waits for the GPU in a step, as torch counts them.

The report is printed, and written to ``--out``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WHEELS = {
    "duckdb": "duckdb",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
    "typing-extensions": "typing_extensions",
    "jaxtyping": "jaxtyping",
    "wadler-lindig": "wadler_lindig",
    "safetensors": "safetensors",
    "pyyaml": "yaml",
}
"""Packages that the machine may lack, and the module of each."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT = 64 * 2**20
NOISE = 0.0016
"""What another seed changes in the AUC of DIN on this log."""
MODELS: dict[str, dict[str, Any]] = {
    "din": {"name": "din", "embedding_dim": 32, "mlp": [128, 64], "dropout": 0.2},
    "dien": {"name": "dien", "embedding_dim": 32, "mlp": [128, 64], "dropout": 0.2},
    "bst": {"name": "bst", "embedding_dim": 32, "mlp": [128, 64], "dropout": 0.2},
}
BATCH, WARM, FEWEST = 1024, 5, 20
"""Rows of a batch, steps before the rate is measured, and fewest steps of a run."""
SCORED = 0.14
"""Share of the rows that a run scores: valid twice, test once."""


def pack(folder: Path) -> None:
    """Build the folder to carry: wheels, and MovieLens-1M raw and prepared."""
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder}: not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    tags = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version", "3.12"]
    subprocess.run([*command, "--implementation", "cp", *tags, "-d", str(folder / "wheels"), *WHEELS], check=True)
    _import_longrec()
    from longrec import commands
    from longrec.data.public_datasets import fetch_movielens_1m
    from longrec.interop import atomic

    source = fetch_movielens_1m(atomic.read)
    for file in ("ratings", "movies", "users"):
        (folder / "data").mkdir(exist_ok=True)
        shutil.copy(source / f"{file}.parquet", folder / "data")
    commands.prepare(job("din", folder, folder / "runs", "cpu", 1, 1))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        sys.exit(f"more than the {LIMIT // 2**20} MiB that may be carried")


def install(folder: Path) -> list[str]:
    """Put what the machine lacks on the path, from the wheels. Return the names."""
    taken, site = [], Path(tempfile.mkdtemp(prefix="site-"))
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        name = wheel.name.partition("-")[0].replace("_", "-").lower()
        if importlib.util.find_spec(WHEELS[name]) is None:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
            taken.append(wheel.name)
            sys.path.insert(0, str(site))
            importlib.invalidate_caches()
    _import_longrec()
    return taken


def _import_longrec() -> None:
    """Import the package of this checkout, not an installed one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(ROOT / "src"))
    import longrec

    assert Path(longrec.__file__).is_relative_to(ROOT), longrec.__file__


def job(model: str, folder: Path, runs: Path, device: str, threads: int, steps: int) -> dict[str, Any]:
    """Return the config of a run."""
    from longrec.config import read_yaml

    schema = read_yaml(ROOT / "examples" / "movielens" / "movielens.schema.yaml")
    schema["histories"] = {"rated": {"features": ["movie", "genres", "rating", "time_gap"], "max_length": 20}}
    data = folder.resolve() / "data"
    return {
        "name": f"{model}-{device}-{steps}",
        "data": {
            "schema": schema,
            "log": str(data / "ratings.parquet"),
            "users": str(data / "users.parquet"),
            "items": str(data / "movies.parquet"),
            "split": {"by": "time", "valid": 0.02, "test": 0.1},
            "folder": str(folder.resolve() / "prepared"),
        },
        "model": MODELS[model],
        "fit": {
            "epochs": 2,
            "max_steps": steps,
            "batch_size": BATCH,
            "device": device,
            "threads": threads,
            "val_checks_per_epoch": 1,
            "checkpoint_seconds": None,
            "runs": str(runs),
            "tensorboard": "off",
            "mlflow": "off",
        },
        "evaluate": {"n_resamples": 2},
    }


class Stopwatch:
    """Rows per second of the steps of a run, from step ``WARM`` on. Waits for the device before it reads the clock."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen, self.began, self.spent = steps, 0, 0.0, 0.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Time the steps of the training loop."""
        import torch

        from longrec.training import loop

        step = loop.update

        def timed(*args: Any, **settings: Any) -> None:
            step(*args, **settings)
            self.seen += 1
            if self.seen in (WARM, self.steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                now = time.perf_counter()
                self.began, self.spent = (now, 0.0) if self.seen == WARM else (self.began, now - self.began)

        loop.update = timed
        try:
            yield
        finally:
            loop.update = step

    @property
    def rate(self) -> float:
        """Rows per second."""
        return (self.steps - WARM) * BATCH / self.spent


def train(model: str, folder: Path, device: str, threads: int, steps: int) -> dict[str, Any]:
    """Train a model on a device and return its AUC on test, rows per second and seconds in all."""
    from longrec import commands

    watch, began = Stopwatch(steps), time.perf_counter()
    with tempfile.TemporaryDirectory() as runs, watch.attached():
        run = commands.train(job(model, folder, Path(runs), device, threads, steps), quiet=True)
        auc = run.metrics["auc"].value
    return {"auc": auc, "rate": watch.rate, "seconds": time.perf_counter() - began, "steps": steps}


def profile(model: str, folder: Path, device: str, threads: int) -> dict[str, Any]:
    """Return the share of a step's time in which the device computes, the time of a step, and the longest kernels."""
    import torch
    from torch.profiler import ProfilerActivity

    with training(model, folder, device, threads) as (do_step, wait):
        for _ in range(10):
            do_step()
        wait()
        began = time.perf_counter()
        for _ in range(20):
            do_step()
        wait()
        ms = (time.perf_counter() - began) * 50
        on_gpu = device == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(10):
                do_step()
            wait()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = Counter({event.key: getattr(event, key) / 1_000 / 10 for event in profiler.key_averages()})
    memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    return {"ms": ms, "computing": times.total() / ms, "longest": times.most_common(6), "peak_mb": memory}


@contextmanager
def training(
    model: str, folder: Path, device: str, threads: int
) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Provide a function that does the next step of a new model, and one that waits for the device."""
    import torch

    from longrec.training.device import choose_device, prepare_torch
    from longrec.training.finished_run import read_log
    from longrec.training.job import read_job
    from longrec.training.loaders import build_loader
    from longrec.training.loop import update
    from longrec.training.optimizers import build_optimizers
    from longrec.training.running_loss import RunningLoss

    described = read_job(job(model, folder, Path("runs"), device, threads, 1))
    log, target = read_log(described), choose_device(device)
    with prepare_torch(threads, 0, target):
        from longrec.models.core.registry import build

        built = build(described.model, log.fields()).to(target).train()
        optimizers, losses = build_optimizers(built, described.fit), RunningLoss(model, False)
        batches = build_loader(built, log, log.rows_of("train"), BATCH).epoch(0)
        number = iter(range(10**9))
        yield (
            lambda: update(built, optimizers, described.fit, next(number), next(batches), losses),
            torch.cuda.synchronize if target.type == "cuda" else lambda: None,
        )


def check_models(device: str, deadline: float) -> dict[str, Any]:
    """Do one step of every model and variant on a device. Return what differs from the CPU, and the waits."""
    import torch

    from longrec.models.core.catalog import names
    from longrec.testing.devices import compare_steps
    from longrec.testing.suite import cases_of

    done, faults, waits = 0, [], {}
    cases = [case for name in names() for case in cases_of(name)]
    for case in cases:
        if time.perf_counter() > deadline:
            faults.append(f"{len(cases) - done} of {len(cases)} cases were not reached in time")
            break
        try:
            with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
                counted = compare_steps(case, lambda model, batch: step_here(model, batch, device))
            if counted:
                waits[str(case)] = dict(counted)
        except Exception as error:  # noqa: BLE001 - one machine, one try: every model is reported
            faults.append(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        done += 1
    return {"done": done, "cases": len(cases), "faults": faults, "waits": waits}


def step_here(model: Any, batch: Any, device: str) -> tuple[Any, Counter[str]]:
    """Do one training step on a device. Return the loss and the waits that torch counts."""
    import torch

    from longrec.features.transfer import transfer
    from longrec.testing.case import backpropagate
    from longrec.training.optimizers import build_optimizers
    from longrec.training.settings import FitConfig

    target = torch.device(device)
    optimizers, batch = build_optimizers(model.to(target), FitConfig()), transfer(batch, target)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            loss = backpropagate(model, batch)
            for optimizer in optimizers.values():
                optimizer.step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    lines = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    return loss.detach().cpu(), Counter(lines)


def report(measured: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    devices, lines = measured["devices"], [f"# Training on {measured['gpu']} beside the CPU", ""]
    head = ["model", "steps", *(f"AUC, {d}" for d in devices), "difference"]
    head += [*(f"rows per second, {d}" for d in devices), "ratio"]
    lines += [measured["about"], "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for model, runs in measured["runs"].items():
        aucs, rates = [runs[d]["auc"] for d in devices], [runs[d]["rate"] for d in devices]
        away = abs(aucs[0] - aucs[-1])
        verdict = f"{away:.4f}{'' if away <= 2 * NOISE else ' TOO LARGE'}"
        cells = [model, f"{runs[devices[0]]['steps']:,}", *(f"{auc:.4f}" for auc in aucs), verdict]
        cells += [*(f"{rate:,.0f}" for rate in rates), f"{rates[-1] / rates[0]:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"## A step on {devices[-1]}", "", "| model | ms | share in kernels | peak MB | longest (ms) |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for model, one in measured["profiles"].items():
        longest = "; ".join(f"{name[:60]} {ms:.2f}" for name, ms in one["longest"])
        lines.append(f"| {model} | {one['ms']:.2f} | {one['computing']:.0%} | {one['peak_mb']:.0f} | {longest} |")
    checked = measured.get("checked")
    if checked and checked["done"]:
        lines += ["", f"## Every model: {checked['done']} of {checked['cases']} cases", ""]
        lines += [f"- {fault}" for fault in checked["faults"]] or ["- Loss and gradients are those of the CPU."]
        lines += [f"- waits: {case}: {waits}" for case, waits in checked["waits"].items()] or ["- No step waits."]
    return "\n".join([*lines, "", f"{measured['seconds']:.0f} seconds in all."]) + "\n"


def main() -> None:
    """Pack, or measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, help="build the folder to carry, and end")
    parser.add_argument("--carried", type=Path, help="the folder that --pack built")
    parser.add_argument("--cpu-only", action="store_true", help="use the CPU in place of the GPU, to try the script")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=460, help="time in all")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of the report")
    args = parser.parse_args()
    if args.pack is not None:
        pack(args.pack)
        return
    began = time.perf_counter()
    wheels = install(args.carried)
    import torch

    warnings.filterwarnings("ignore", category=UserWarning)
    other = "cpu" if args.cpu_only else "cuda"
    threads, gpu = len(os.sched_getaffinity(0)), "no GPU" if args.cpu_only else torch.cuda.get_device_name()
    about = f"torch {torch.__version__}, Python {sys.version.split()[0]}, {threads} threads of the CPU; from wheels: "
    measured: dict[str, Any] = {
        "gpu": gpu,
        "about": about + (", ".join(wheels) or "nothing"),
        "devices": ["cpu", other],
    }
    measured |= {"runs": {}, "profiles": {}}

    def save(step: str) -> None:
        measured["seconds"] = time.perf_counter() - began
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "gpu.json").write_text(json.dumps(measured, indent=1, default=str))
        (args.out / "gpu.md").write_text(report(measured))
        print(f"{measured['seconds']:6.1f} s  {step}", flush=True)

    # Six tenths for training, the rest for profiles and for the steps of all models.
    share = args.seconds * 0.6 / len(args.models)
    for model in args.models:
        if time.perf_counter() - began > 0.7 * args.seconds:
            save(f"no time for {model}")
            continue
        profiled = profile(model, args.carried, other, threads)
        save(f"profiled {model}")
        step = profile(model, args.carried, "cpu", threads)["ms"] / 1_000
        # The CPU takes nearly all of the time, and scores a row in at most the time in which it learns one.
        scoring = SCORED * 1e6 / BATCH * step
        steps = min(max(int((share - scoring) / step / 1.2), FEWEST), 2 * 859)  # two epochs at most
        runs = {}
        for device in dict.fromkeys(["cpu", other]):
            runs[device] = train(model, args.carried, device, threads, steps)
        measured["runs"][model], measured["profiles"][model] = runs, profiled
        save(f"trained {model}: {steps} steps")
    measured["checked"] = check_models(other, began + args.seconds - 10)
    save("checked every model")
    print(report(measured))


if __name__ == "__main__":
    main()
