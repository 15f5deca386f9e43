"""Leaks that were found once, planted again: each takes one protection away."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from coin_cases import BASE, LATER, SOURCE, Case
from coin_log import DAY, LINE, CoinLog, write
from coin_runs import Change, Config, Runs, Seen, unchanged

from longrec.commands import export
from longrec.data import targets
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.training_window import ExcludedRows
from longrec.features.history_columns import NEVER
from longrec.metrics import auc
from longrec.serve.client import client
from longrec.serve.live_events import LiveEvents
from longrec.store.token_store import TokenStore
from longrec.training.compress import compress
from longrec.training.finished_run import Run
from longrec.training.job import read_job

Patch = pytest.MonkeyPatch


def case(**values: str) -> Case:
    """A case that differs from the plainest one."""
    return {**BASE, **values}


def keep_all_rows(patch: Patch) -> None:
    """Train on rows whatever was known of their labels."""
    patch.setattr(Log, "excluded_rows", lambda log, split: ExcludedRows(np.zeros(0, np.int64)))


def tokens_at_once(patch: Patch) -> None:
    """Show every token from its own event on."""
    append = TokenStore.append

    def early(store: TokenStore, keys: Any, times: Any, **columns: Any) -> None:
        append(store, keys, times, **{**columns, "visible": times})

    patch.setattr(TokenStore, "append", early)


def available_early(patch: Patch) -> None:
    """Believe a available_at that lies before its event."""
    patch.setattr(Log, "label_time", lambda log, rows: log.events.times.take(rows) - 3_600_000)


def filters_at_once(patch: Patch) -> None:
    """Let a filter on feedback see an event as soon as it happened."""
    patch.setattr("longrec.data.log.compute_filter_delay", lambda fitted, name: 0)


def no_offsets(patch: Patch) -> None:
    """Read the clock of text with a UTC offset as if it were UTC."""
    patch.setattr("longrec.data.timestamp_sql.fast_sql", lambda text: f"epoch_ms(left({text}, 19)::TIMESTAMP)")


def any_delays(patch: Patch) -> None:
    """Take a schema whose delays contradict each other."""
    patch.setattr("longrec.features.schema.find_delay_faults", lambda *arguments: [])


def label_at_once(config_dict: Config) -> None:
    """Show the label in histories at once, whatever label_delay says."""
    config_dict["data"]["schema"]["features"]["click"]["available_after"] = "0s"


def no_available_at(config_dict: Config) -> None:
    """Take every event for available when it happened."""
    del config_dict["data"]["schema"]["time"]["available_at"]


def no_request(config_dict: Config) -> None:
    """Take the rows of a request for events that follow each other."""
    del config_dict["data"]["schema"]["request"]


def no_echo_delay(config_dict: Config) -> None:
    """Take feedback for known at once."""
    config_dict["data"]["schema"]["features"]["echo"] |= {"available_after": "0s"}


def early_column(config_dict: Config) -> None:
    """A available_at that lies an hour before its event."""
    config_dict["data"]["schema"]["features"]["click"]["available_at"] = "early_at"


def targets_at_last(patch: Patch) -> None:
    """Learn further labels as they were in the end, whenever they became known."""
    compute = targets.compute_targets

    def late(log: Log, rows: Any, names: Any, available_before: int | None = None) -> Any:
        return compute(log, rows, names, NEVER)

    patch.setattr("longrec.data.gather.compute_targets", late)


def press_label(config_dict: Config) -> None:
    """A label of its own for each row, known at once, beside which the coin is feedback that comes late."""
    schema = config_dict["data"]["schema"]
    schema["label"] = "press"
    del schema["features"]["click"]
    schema["histories"]["seen"]["features"].remove("click")
    schema["histories"]["liked"]["where"] = {"echo": 1}


@dataclass(frozen=True)
class Plant:
    """One leak.

    Attributes:
        case: the case it shows in.
        patch: takes the protection away.
        change: does the same by the config.
        always: a change of the config with the protection and without.
        scores: the column of predictions that is judged.
    """

    case: Case
    patch: Callable[[Patch], None] | None = None
    change: Change = unchanged
    always: Change = unchanged
    scores: str = "score"

    def honest(self, runs: Runs) -> Seen:
        """The run with its protection; cases that are alike share one."""
        return runs.once(
            ("honest", *self.case.values(), self.always), lambda: runs.run(self.case, self.always, self.scores)
        )

    def planted(self, runs: Runs, patch: Patch) -> Seen:
        """The run without its protection; what is made for it is not kept for others."""

        def change(config_dict: Config) -> None:
            self.always(config_dict)
            self.change(config_dict)
            config_dict["data"]["folder"] += "-planted"

        if self.patch is not None:
            self.patch(patch)
        return Runs(runs.folder / "planted", number=runs.number).run(self.case, change, self.scores)


PLANTS: dict[str, Plant] = {
    "UTC offsets": Plant(case(form="tied", clock="text", label="at_once"), no_offsets),
    "labels unknown at the line": Plant(case(), keep_all_rows),
    "leave-one-out, ties": Plant(case(split="leave_one_out", form="tied", label="at_once"), keep_all_rows),
    "leave-one-out, one request": Plant(case(split="leave_one_out", form="request", label="at_once"), keep_all_rows),
    "leave-one-out, unknown labels": Plant(case(split="leave_one_out"), keep_all_rows),
    "positive tokens": Plant(case(tokens="positive"), tokens_at_once),
    "known before the event": Plant(
        case(split="leave_one_out", form="tied", label="available_at"), available_early, always=early_column
    ),
    "filter on feedback": Plant(case(), filters_at_once),
    "another task's label": Plant(
        case(label="at_once", echo="delay", tasks="shared_bottom"),
        targets_at_last,
        always=press_label,
        scores="score.echo",
    ),
    "late events": Plant(case(late="available_at"), change=no_available_at),
    "one request": Plant(case(form="request", label="at_once"), change=no_request),
    "label at once": Plant(case(), any_delays, label_at_once),
    "feedback at once": Plant(case(), change=no_echo_delay),
}


def knowledge_of_targets(runs: Runs) -> Seen:
    """A run that reads an extractor's knowledge; the extractor learned the coins as a further label."""
    source = case(label="at_once", echo="delay")
    store = runs.knowledge(source, "blocks=8", "epochs=6", change=press_label)
    return runs.run(case(knowledge="keep"), knowledge=store)


def future_weights(runs: Runs, allowed: bool) -> Seen:
    """A run that starts from one whose line lies behind all sessions."""
    plain = case(start="earlier_run")
    later = runs.config(plain)
    later["data"]["split"] = LATER
    start = {"init_from": str(runs.train(later).folder)}
    config = runs.config(plain)
    config["fit"] |= start | ({"allow_future_weights": True} if allowed else {})
    return runs.judge(runs.train(config), runs.log(plain))


def weights_of_early_labels(runs: Runs, allowed: bool) -> Seen:
    """A run that starts from one that took labels for known at once, which only became available after the line."""
    waiting = case(label="at_once", late="available_at", start="earlier_run")
    early = runs.config(waiting)
    no_available_at(early)
    config = runs.config(waiting)
    config["fit"] |= {"init_from": str(runs.train(early).folder)} | ({"allow_future_weights": True} if allowed else {})
    return runs.judge(runs.train(config), runs.log(waiting))


def leaky_tokens(runs: Runs, allowed: bool) -> Seen:
    """A run that reads tokens of a source that was trained on the very rows."""
    source = runs.config(case())
    source["model"], source["data"]["split"] = SOURCE, LATER
    into = runs.folder / "tokens" / f"leaky-{next(runs.number)}"
    compress(runs.train(source), into, ["mode=leaky_checkpoint"], quiet=True)
    return read(runs, str(into), allowed)


def tokens_of_other_delay(runs: Runs, allowed: bool) -> Seen:
    """A run that reads tokens of a source that took labels for known at once."""

    def at_once(config_dict: Config) -> None:
        del config_dict["data"]["schema"]["label_delay"]

    return read(runs, runs.tokens(case(), "all", change=at_once), allowed)


def read(runs: Runs, store: str, allowed: bool) -> Seen:
    """A run that reads a token store."""

    def change(config_dict: Config) -> None:
        config_dict["data"]["schema"]["histories"]["tokens"] |= {"allow_leak": True} if allowed else {}

    return runs.run(case(tokens="blocks"), change, tokens=store)


def newest_versions(runs: Runs) -> Seen:
    """A run whose table of items holds the newest version alone, without a time."""
    base = case(tables="as_of")
    path = write(runs.log(base).newest_items(), runs.folder / "newest.parquet")
    return runs.run(base, lambda config_dict: config_dict["data"].update({"items": path}))


def copied_label(config_dict: Config) -> None:
    """The label under another name among the features."""
    config_dict["data"]["schema"]["features"]["copied"] = {"kind": "id", "vocab": [0, 1]}


def copied_filter(config_dict: Config) -> None:
    """The label under another name as the filter of a history."""
    config_dict["data"]["schema"]["histories"]["liked"]["where"] = {"copied": 1}


def copied_task(config_dict: Config) -> None:
    """The label of another task under another name among the features."""
    press_label(config_dict)
    copied_label(config_dict)


COPIES: dict[str, tuple[Case, Change, str]] = {
    "feature 'copied' alone predicts the label": (case(), copied_label, "score"),
    "history 'liked': its filter on column 'copied' alone predicts the label": (case(), copied_filter, "score"),
    "feature 'copied' alone predicts the feedback 'echo'": (
        case(label="at_once", echo="delay", tasks="shared_bottom"), copied_task, "score.echo",
    ),
}  # fmt: skip
"""Warnings, each with a case, a change of its config, and the scores that tell the coins."""


def live_at_once(patch: Patch) -> None:
    """Take a live event for told when it happened."""
    prepare_update = LiveEvents.prepare_update

    def early(
        live: LiveEvents, user: int, row: int, time: int, columns: Any, old: Any, now: int, **config_dict: Any
    ) -> Any:
        return prepare_update(live, user, row, time, columns, old, time, **config_dict)

    patch.setattr(LiveEvents, "prepare_update", early)


def open_hints(config_dict: Config) -> None:
    """Hints that are told in time, but none of what is tested: the model learns to trust them."""
    config_dict["data"]["schema"]["features"]["hint"]["column"] = "open_hint"


def no_histories(config_dict: Config) -> None:
    """A source that reads no histories."""
    open_hints(config_dict)
    config_dict["data"]["schema"]["histories"] = {}


@dataclass
class Shop:
    """Bundles of a ranker that trusts hints, and of the source of its tokens."""

    run: Run
    ranker: Path
    source: Path


def shop(runs: Runs) -> Shop:
    """Train and export once."""

    def make() -> Shop:
        tokens = runs.tokens(case(), "all", change=no_histories)
        run = runs.run(case(tokens="blocks"), open_hints, tokens=tokens).run
        ranker, source = runs.folder / "ranker.bundle", runs.folder / "source.bundle"
        export(run, ranker)
        export(tokens, source)
        return Shop(run, ranker, source)

    return runs.once("shop", make)


def late_live_events(runs: Runs, state: str) -> tuple[float, float]:
    """AUC of served scores of the last sessions, and its standard error.

    Before each request an event of its user is told that shows the coin. It happened before the session, and is told
    now, years after it.
    """
    bundles, log = shop(runs), runs.log(case())
    columns = log.columns
    rows = np.flatnonzero((columns["at"] >= LINE) & (columns["user_id"] < 200))
    _, first = np.unique(columns["user_id"][rows], return_index=True)
    rows = rows[first]
    scores = []
    with client(bundles.ranker, events=bundles.source, state=runs.folder / state) as server:
        for row in rows.tolist():
            user, item, at, coin = (int(columns[name][row]) for name in ("user_id", "item_id", "at", "click"))
            server.event(user, item - 1, LINE - DAY, context={"place": 0, "open_hint": coin})
            answer = server.rank(user, [item], at=at, context={"place": int(columns["place"][row]), "open_hint": 2})
            scores.append(answer[0].score)
    coins = columns["click"][rows]
    return float(auc(coins, np.array(scores))), float(np.sqrt((len(rows) + 1) / (3 * len(rows) ** 2)))


def replaced_log(runs: Runs) -> float:
    """How many labels are right after a log was replaced by one of the same size and time of change."""
    config = runs.config(case())
    path = runs.folder / "replaced.parquet"
    config["data"]["log"] = str(path)
    shares = []
    for seed in (5, 6):
        log = CoinLog("spread", seed=seed)
        pq.write_table(
            log.table("seconds").drop_columns("part"),
            path,
            use_dictionary=False,
            compression="none",
            write_statistics=False,
        )
        os.utime(path, ns=(0, 0))
        job = read_job(config)
        opened = Log.open(prepare(job.data, job.schema))
        keys = opened.items.keys.values.to_numpy()[opened.events.columns["item"] - 1]
        shares.append(float(np.mean(opened.labels == log.coins[keys])))
    assert shares[0] == 1
    return shares[1]


def old_cache(patch: Patch) -> None:
    """Know files again by their size and time of change."""

    def stat(path: Path) -> list[int]:
        about = path.stat()
        return [about.st_size, about.st_mtime_ns, 0, 0]

    patch.setattr("longrec.data.fingerprint._stat", stat)
