"""Check that the base of a re-ranker has seen no row of its lists.

A re-ranker reads the hidden layer of its base. If the base was trained on a list, this layer holds the clicks of the
list in part, which it never does in serving.
"""

from __future__ import annotations

from longrec.data.log import Log
from longrec.data.splits import describe_timestamp
from longrec.errors import RunError
from longrec.training.finished_run import Run, open_run
from longrec.training.seen_labels import collect_delays, read_seen_labels


def check_earlier_base(run: Run, log: Log, where: str) -> None:
    """Refuse to train on lists at or before rows that the base was trained on.

    Args:
        run: run of the base, or of a re-ranker that continues to learn. The base is then that of its own start.
        log: log of the re-ranker, whose training rows are its lists.

    Raises:
        RunError: with both timestamps in the message.
    """
    while run.config.fit.init_from is not None and run.results.get("objective") == "lists":
        run = open_run(run.config.fit.init_from)
    expected = "a base trained only on labels available before the first list, so that its hidden layer holds no click"
    seen = read_seen_labels(run).with_delays(collect_delays(log.schema))
    step = log.schema.time is not None and log.schema.time.unit == "step"
    if seen.trained is None or seen.step != step or (step and seen.log != str(log.manifest["source"]["log"])):
        raise RunError(
            where,
            f"the labels that {run.name} was trained on are unknown or cannot be compared with this log",
            expected,
            "train the base on a log with timestamps, split by time",
        )
    first = int(log.timestamps.take(log.rows_of("train")).min())
    if first < seen.trained:
        end = describe_timestamp(seen.trained, step)
        raise RunError(
            where,
            f"{run.name} was trained on labels available until {end}, and the first list is at "
            f"{describe_timestamp(first, step)}",
            expected,
            f"set fit.train_from to {end} or later, or start from a run whose split ends earlier",
        )
