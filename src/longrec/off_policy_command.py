"""Off-policy estimates of a log: ``longrec.estimate_policy``, and the command ``longrec offpolicy``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError

if TYPE_CHECKING:
    from longrec.metrics.policy_value import PolicyValue


def estimate_policy(
    log: Any,
    policy: Any = None,
    *,
    reward: str = "reward",
    propensity: str = "propensity",
    target: str = "target",
    predicted: str | None = None,
    expected: str | None = None,
    user: str | None = None,
    request: str | None = None,
    item: str | None = None,
    position: str | None = None,
    clip: float | None = None,
    min_effective: float = 100.0,
) -> PolicyValue:
    """Estimate the mean reward per row that another policy would have earned, from a log of random draws.

    Estimators: IPS, clipped IPS and SNIPS, and with predicted rewards DM and DR, see ``longrec.metrics.off_policy``.

    Args:
        log: rows of shown items: a file, a folder of files such as the impression log of a server, a pattern, or a
            frame. Each row has a reward and the propensity with which its item was drawn.
        policy: table with the probabilities of the target policy, one row per request and item (and position, if it is
            named). Default: the log has them.
        reward, propensity: columns of the log.
        target: column of the probability of the target policy, of the policy table if there is one.
        predicted: column of the reward that a model predicts for the item of a row, of the policy table if there is
            one. Such a table has all candidates of each request: ``expected`` is computed from it.
        expected: column of the mean prediction under the target policy. For a log without a policy table.
        user, request: column of the unit of the intervals: the user if it is named, else the request, else each row.
        request, item: columns that join the policy table. Default: ``request`` and ``item``.
        position: column of the position on a page. Results then have each position.
        clip: largest weight of clipped IPS. Default: the root of the number of rows.
        min_effective: effective sample size below which estimates are refused.

    Raises:
        ConfigError: options that do not fit.
        DataError: a table or column that cannot be used, a propensity that is 0, null or above 1, a shown item without
            a probability of the target policy, or an effective sample size below ``min_effective``.
    """
    from longrec.evaluation.policy_log import read_log
    from longrec.metrics.off_policy import estimate_policy_value

    options = {"target": target, "predicted": predicted, "expected": expected}
    probabilities = {role: column for role, column in options.items() if column is not None}
    keys = {role: column for role, column in (("user", user), ("position", position)) if column is not None}
    numbers = {"reward": reward, "propensity": propensity}
    if policy is None:
        if item is not None:
            raise ConfigError("offpolicy", ["item: joins a policy table, and there is none"])
        keys |= {} if request is None else {"request": request}
        values = read_log(log, numbers | probabilities, keys)
    else:
        if expected is not None:
            raise ConfigError("offpolicy", ["expected: is computed from predicted of the policy table; leave it out"])
        joined = {"request": request or "request", "item": item or "item"}
        joined |= {} if position is None else {"position": position}
        values = read_log(log, numbers, keys, policy, joined, probabilities)
    unit = "user" if user is not None else "request" if request is not None else None
    return estimate_policy_value(
        values["reward"],
        values["propensity"],
        values["target"],
        predicted=values.get("predicted"),
        expected=values.get("expected"),
        position=values.get("position"),
        unit=None if unit is None else values[unit],
        unit_name=unit or "row",
        clip=clip,
        min_effective=min_effective,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    rows = "rows of shown items: a file, a folder such as the impression log of a server, or a pattern in quotes"
    parser.add_argument("log", help=rows)
    table = "table with the probabilities of the target policy, joined by request and item; default: LOG has them"
    parser.add_argument("--policy", metavar="FILE", help=table)
    parser.add_argument("--reward", default="reward", metavar="COLUMN", help="reward of each row (default: reward)")
    drawn = "probability with which the item of a row was drawn (default: propensity)"
    parser.add_argument("--propensity", default="propensity", metavar="COLUMN", help=drawn)
    target = "probability of the target policy for the same item (default: target)"
    parser.add_argument("--target", default="target", metavar="COLUMN", help=target)
    model = "reward that a model predicts for the item of a row, for DM and DR"
    parser.add_argument("--predicted", metavar="COLUMN", help=model)
    mean = "mean prediction under the target policy; with --policy it is computed"
    parser.add_argument("--expected", metavar="COLUMN", help=mean)
    parser.add_argument("--user", metavar="COLUMN", help="user of each row, the unit of the intervals")
    request = "request of each row, the unit of the intervals without --user, and key of --policy"
    parser.add_argument("--request", metavar="COLUMN", help=request)
    parser.add_argument("--item", metavar="COLUMN", help="item of each row, key of --policy (default: item)")
    position = "position on the page; assumes that a reward depends on its own position alone"
    parser.add_argument("--position", metavar="COLUMN", help=position)
    clip = "largest weight of clipped IPS (default: the root of the number of rows)"
    parser.add_argument("--clip", type=float, metavar="WEIGHT", help=clip)
    size = "effective sample size below which estimates are refused (default: 100)"
    parser.add_argument("--min-effective", type=float, default=100.0, metavar="N", help=size)


_OPTIONS = (
    "policy", "reward", "propensity", "target", "predicted", "expected", "user", "request", "item", "position", "clip",
    "min_effective",
)  # fmt: skip


def run_off_policy(args: argparse.Namespace) -> None:
    """Print the estimates of a target policy."""
    from longrec.reporting.tables import table, warning_lines, write_json

    value = estimate_policy(args.log, **{name: getattr(args, name) for name in _OPTIONS})
    if args.json != "-":
        caption, columns = value.shown()
        lines = [line for line in caption.splitlines() if not line.startswith("warning: ")]
        print("\n".join([*lines, table(list(columns), list(zip(*columns.values()))), *warning_lines(value.warnings)]))
    if args.json:
        write_json(value.to_dict(), args.json)
