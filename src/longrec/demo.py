"""The demo on MovieLens-1M: prepare, train two rankers and a retriever, export, serve, and write a report."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from longrec import commands, exports
from longrec.data.public_datasets import cache_folder, fetch_movielens_1m
from longrec.errors import DataError, RunError
from longrec.interop import atomic
from longrec.progress import duration

_RUNS = ("deepfm", "din")
_RETRIEVER = "covisit"


def demo(folder: str | Path = "longrec-demo", say: Callable[[str], None] = print) -> Path:
    """Fetch MovieLens-1M, train two rankers and a retriever, serve them, recommend, and write a report.

    Args:
        folder: folder of the configs, runs, bundle and report.
        say: function that prints a line of progress.

    Returns:
        The HTML report.
    """
    began, folder = time.perf_counter(), Path(folder)
    step = _Steps(say, 7)
    step("MovieLens-1M: ratings of films by users, with timestamps")
    source = fetch_movielens_1m(atomic.read, say)
    configs = _write_configs(folder, source)
    overrides = [f"fit.runs={folder / 'runs'}", f"data.folder={cache_folder() / 'prepared'}"]
    manifest = commands.prepare(configs["din"], overrides)
    say(_format_facts(manifest))

    step("Train DeepFM (no history) and DIN (the last 20 ratings)")
    runs = {}
    for name in _RUNS:
        shutil.rmtree(folder / "runs" / name, ignore_errors=True)
        runs[name] = commands.train(configs[name], overrides)
        say(f"{name}: test AUC {runs[name].metrics['auc']}, trained in {duration(runs[name].results['seconds'])}")

    step("Compare them on the same test rows")
    from longrec.reporting.tables import comparison_table, format_metric_name, write_json

    comparison = commands.compare([runs[name] for name in _RUNS])
    say(comparison_table(comparison.to_dict()))
    write_json(comparison.to_dict(), folder / "comparison.json")

    step("Recall: count which films follow each other, and rank all films for each film that was rated 4 or better")
    shutil.rmtree(folder / "runs" / _RETRIEVER, ignore_errors=True)
    retriever = commands.train(configs[_RETRIEVER], overrides)
    figures = ", ".join(f"{format_metric_name(key)} {retriever.metrics[key].value:.3f}" for key in retriever.metrics)
    say(f"{retriever.results['rows']:,} targets of test among {manifest['items']:,} films: {figures}")

    step("Export DIN and the retriever")
    bundle, recall = folder / "din.bundle", folder / f"{_RETRIEVER}.bundle"
    commands.export(runs["din"], bundle, overwrite=True)
    commands.export(retriever, recall, overwrite=True)
    say(f"bundles: {bundle}, {recall}")

    step("Serve both on loopback: rank over HTTP, and recommend")
    ranked = _rank_over_http(bundle, recall, runs["din"], say)

    step("Write the report")
    report = _write_report(folder, runs, comparison, manifest, ranked, figures)
    say(f"\nDone in {duration(time.perf_counter() - began)}.")
    say(_format_next_steps(folder, report))
    return report


class _Steps:
    """Printer of numbered headings."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self.say, self.total, self.done = say, total, 0

    def __call__(self, title: str) -> None:
        self.done += 1
        self.say(f"\n[{self.done}/{self.total}] {title}")


def examples() -> Path:
    """Return the folder of the shipped examples: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parents[1] / "examples"):
        if folder.is_dir():
            return folder
    raise DataError("examples", f"not found beside {here}", "the shipped examples", "install the package again")


def _write_configs(folder: Path, source: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    shipped = examples() / "movielens"
    (folder / "movielens.schema.yaml").write_text((shipped / "movielens.schema.yaml").read_text())
    configs = {}
    for name in (*_RUNS, _RETRIEVER):
        text = (shipped / f"{name}.yaml").read_text()
        for table in ("ratings", "users", "movies"):
            text = text.replace(f"{table}.parquet", str(source / f"{table}.parquet"))
        configs[name] = folder / f"{name}.yaml"
        configs[name].write_text(text)
    return configs


def _format_facts(manifest: dict[str, Any]) -> str:
    counts = ", ".join(f"{split} {count['samples']:,}" for split, count in manifest["parts"].items())
    return (
        f"{manifest['events']:,} ratings by {manifest['users']:,} users of {manifest['items']:,} films\n"
        f"samples: {counts}\n"
        f"prepared log: {manifest['folder']}"
    )


def _rank_over_http(bundle: Path, recall: Path, run: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Rank for one test user through the server, compare its scores with the offline ones, and recommend."""
    from longrec.serve.client import client
    from longrec.serve.server import run_server
    from longrec.serve.settings import build_settings

    log = run.log()
    row = _choose_row(log)
    golden = exports.build_offline_request(log, run.model(), row, exports.sort_items_by_popularity(log)[:99])
    user, at = golden.request["user"], golden.request["at"]
    with run_server(bundle, settings=build_settings(recall=recall)) as url, client(url) as shop:
        say(f"serving at {url}")
        ranked, took = _time_requests(lambda: shop.rank(**golden.request))
        recommended, recommend_took = _time_requests(lambda: shop.recommend(user=user, k=5, at=at))
    offline = dict(zip(golden.request["candidates"], golden.scores))
    worst = max(abs(item.score - offline[item.id]) for item in ranked)
    if worst > 1e-4:
        raise RunError("demo", f"online and offline scores differ by {worst:.2e}", "at most 1e-4", "report this")
    say(f"user {user} at {at}: {len(ranked)} films of a request ranked in {took:.1f} ms over HTTP;")
    say(f"online and offline scores differ by at most {worst:.0e}")
    _say_films(ranked[:5], say)
    say(f"of all films not rated yet, 500 retrieved and ranked in {recommend_took:.1f} ms:")
    _say_films(recommended, say)
    return {"row": row}


def _time_requests(send: Callable[[], Any]) -> tuple[Any, float]:
    """Return the response to a request, and the median of the milliseconds of 20 such requests."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        response = send()
        times.append((time.perf_counter() - began) * 1e3)
    return response, float(np.median(times))


def _say_films(items: Any, say: Callable[[str], None]) -> None:
    for rank, item in enumerate(items, 1):
        say(f"  {rank}. {item.score:.3f}  {item.id}")


def _choose_row(log: Any) -> int:
    """Return a test row with a full history."""
    rows = log.rows_of("test")
    history = next(iter(log.schema.histories))
    full = rows[log.compute_history_lengths(history, rows) == log.schema.histories[history].max_length]
    return int(full[len(full) // 2]) if len(full) else int(rows[-1])


def _write_report(
    folder: Path, runs: dict[str, Any], comparison: Any, manifest: dict[str, Any], ranked: dict[str, Any], recall: str
) -> Path:
    from longrec.reporting.page import write_page
    from longrec.reporting.run import read_run
    from longrec.training.explain import explain

    counts = manifest["parts"]
    facts = {
        "Data": f"MovieLens-1M: {manifest['events']:,} ratings by {manifest['users']:,} users",
        "Label": "rating 4 or better",
        "Split": "80/10/10 of the rows along the global time line: "
        + ", ".join(f"{p} {n['samples']:,}" for p, n in counts.items()),
        "Histories": "the last 20 ratings strictly before the timestamp of the impression; ratings have no delay",
        "Recall": f"the counting rule (covisit) on the positives of test, among all films: {recall}",
    }
    views = [read_run(runs[name].folder) for name in _RUNS]
    return write_page(
        folder / "report.html",
        "MovieLens-1M: DeepFM and DIN",
        facts,
        views,
        comparison.to_dict(),
        _format_explanation(explain(runs["din"], ranked["row"])),
        _list_next_steps(folder),
    )


def _format_explanation(explained: dict[str, Any]) -> dict[str, Any]:
    """Return the explanation of one row in the form of the page."""
    events = [
        {
            "name": event["item"],
            "side": {name: _format_value(value) for name, value in event["side"].items()},
            "ago": _format_age(event["ago"] / 1_000),
            "weight": event["weight"],
        }
        for event in explained["histories"]["rated"]
    ]
    when = np.datetime_as_string(np.datetime64(explained["moment"], "ms"), unit="s").replace("T", " ") + " UTC"
    fields = {"user": str(explained["user"]), "when": when, "candidate": str(explained["item"])}
    note = "DIN's scores are not normalized: a weight may be negative, and they need not add up to one."
    return {**fields, "score": explained["score"], "label": explained["label"], "events": events, "note": note}


def _format_age(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} days" if seconds >= 2 * 86_400 else duration(seconds)


def _format_value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _list_next_steps(folder: Path) -> list[str]:
    here = Path(sys.prefix)
    environment = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    # The command is in an environment that a newcomer has not activated yet.
    enter = [] if shutil.which("longrec") else [f"source {environment}/bin/activate"]
    return [
        *enter,
        f"longrec serve {folder}/din.bundle --recall {folder}/{_RETRIEVER}.bundle",
        f"longrec train {folder}/din.yaml data.schema.histories.rated.max_length=50",
        f"longrec train {folder}/din.yaml model.softmax=true name=din-softmax",
        f"longrec compare {folder}/runs/deepfm {folder}/runs/din",
        "longrec models",
        "longrec help din",
    ]


def _format_next_steps(folder: Path, report: Path) -> str:
    lines = [
        f"report:  {report}",
        f"runs:    {folder / 'runs'}",
        f"bundles: {folder / 'din.bundle'}, {_RETRIEVER}.bundle",
        "",
        "Try next:",
    ]
    return "\n".join([*lines, *(f"  {step}" for step in _list_next_steps(folder))])
