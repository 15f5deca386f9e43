"""Reads of the last tokens or events visible at a timestamp. A later write does not change them.

An amended event is stored as a new revision in addition to the first, under the next identity (``identity + 1``). It
replaces the first for timestamps after the amendment. The revisions of an event are therefore adjacent in read order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.store.history_store import Events, HistoryStore
from longrec.store.token_store import Tokens, TokenStore


def read_visible_tokens(
    store: TokenStore,
    users: int | NDArray[np.int64],
    timestamps: int | NDArray[np.int64],
    n: int,
    columns: Sequence[str] | None = None,
) -> Tokens:
    """Return the last ``n`` tokens of each user that were visible strictly before a timestamp.

    A token that was written late does not count among the ``n`` before it is visible. The visibility delay of the store
    applies: a younger token is not read, even if it was stored in time.

    Args:
        users: one user, or ``[k]`` of them.
        timestamps: one timestamp, or ``[k]``.
        columns: as in ``TokenStore.last``. ``visible`` must be among them.
    """
    before = timestamps - store.info.visibility_delay
    columns = None if columns is None else list(dict.fromkeys([*columns, "instance"]))
    tokens = store.last(users, before, n, columns)
    lengths = np.diff(tokens.offsets)
    seen = tokens.visible < np.repeat(np.atleast_1d(np.asarray(timestamps, np.int64)), lengths)
    seen = mask_newest_versions(seen, tokens.times, tokens.instance)
    if seen.all():
        return tokens
    user_array = np.atleast_1d(np.asarray(users, np.int64))
    now = np.broadcast_to(np.asarray(timestamps, np.int64), user_array.shape)
    short = np.flatnonzero((lengths == n) & (_count_seen(seen, tokens.offsets) < n))
    results = [_keep_last_seen(tokens, seen, tokens.offsets, n)]
    wanted = n
    while len(short):
        wanted *= 2
        more = store.last(user_array[short], now[short] - store.info.visibility_delay, wanted, columns)
        own = np.diff(more.offsets)
        good = mask_newest_versions(more.visible < np.repeat(now[short], own), more.times, more.instance)
        ended = (_count_seen(good, more.offsets) >= n) | (own < wanted)
        results.append(_expand_users(_keep_last_seen(more, good, more.offsets, n), short, len(user_array), ended))
        results[0] = _drop_users(results[0], short[ended])
        short = short[~ended]
    return _merge_users(results)


def read_visible_events(
    store: HistoryStore,
    key: int,
    before: int,
    now: int,
    n: int,
    where: str | None,
    columns: Sequence[str] | None,
    since: Sequence[str],
) -> Events:
    """Return the last ``n`` events of a key before a timestamp that were visible strictly before ``now``.

    Args:
        where: as in ``HistoryStore.last``.
        columns: as in ``HistoryStore.last``. Those of ``since``, and the identity of the store, must be among them.
        since: columns with the timestamps from which an event can be read. The first one is that of its revision.
    """
    wanted = n
    while True:
        events = store.last(key, before, wanted, where, columns)
        if not len(events):
            return events
        kept = events.columns[since[0]] < now
        if store.identity is not None:
            kept = mask_newest_versions(kept, events.times, events.columns[store.identity])
        for name in since[1:]:
            kept = kept & (events.columns[name] < now)
        if kept.all():
            return events
        at = np.flatnonzero(kept)
        if len(at) >= n or len(events) < wanted:
            at = at[max(len(at) - n, 0) :]
            own = {name: column[at] for name, column in events.columns.items()}
            return Events(np.array([0, len(at)]), events.times[at], own)
        wanted *= 2


def mask_newest_versions(
    seen: NDArray[np.bool_], times: NDArray[np.int64], identities: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the mask of visible entries without every revision whose next revision is visible too.

    >>> times, ids = np.array([5, 5, 6, 6]), np.array([7, 8, 7, 8])
    >>> mask_newest_versions(np.array([True, True, True, False]), times, ids).tolist()
    [False, True, True, False]
    """
    if len(times) < 2:
        return seen
    again = times[1:] == times[:-1]
    if again.any():
        again &= (identities[1:] == identities[:-1] + 1) & seen[1:]
        seen = seen.copy()
        seen[:-1] &= ~again
    return seen


def _count_seen(seen: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of visible entries of each user."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(seen)])
    return np.diff(total[offsets])


def select_last_visible(seen: NDArray[np.bool_], offsets: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return the ascending positions of the last ``n`` visible entries of each user.

    Args:
        seen: ``[N]``, visible entries of all users, concatenated.
        offsets: int64 ``[users + 1]``.

    >>> select_last_visible(np.array([True, True, False, True, True]), np.array([0, 3, 5]), 1)
    array([1, 4])
    """
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(seen)])
    remaining = np.repeat(total[offsets[1:]], np.diff(offsets)) - total[:-1]  # visible entries from here on
    return np.flatnonzero(seen & (remaining <= n))


def _keep_last_seen(tokens: Tokens, seen: NDArray[np.bool_], offsets: NDArray[np.int64], n: int) -> Tokens:
    """Return the last ``n`` visible tokens of each user."""
    return _take(tokens, select_last_visible(seen, offsets, n))


def _take(tokens: Tokens, at: NDArray[np.int64]) -> Tokens:
    """Return the tokens at some ascending positions."""

    def take(values: NDArray[Any]) -> NDArray[Any]:
        return values[at] if len(values) == len(tokens) else values

    plain = {
        field.name: take(getattr(tokens, field.name))
        for field in fields(tokens)
        if field.name not in ("offsets", "sides", "available_at")
    }
    sides = {name: take(values) for name, values in tokens.sides.items()}
    available_at = {name: take(values) for name, values in tokens.available_at.items()}
    return replace(tokens, offsets=np.searchsorted(at, tokens.offsets), sides=sides, available_at=available_at, **plain)


def _expand_users(tokens: Tokens, users: NDArray[np.int64], count: int, keep: NDArray[np.bool_]) -> Tokens:
    """Return the tokens of some users as those of ``count`` users, of whom the others have none."""
    lengths = np.diff(tokens.offsets)
    tokens = _take(tokens, np.flatnonzero(np.repeat(keep, lengths)))
    all_lengths = np.zeros(count, np.int64)
    all_lengths[users] = np.diff(tokens.offsets)
    return replace(tokens, offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(all_lengths)]))


def _drop_users(tokens: Tokens, users: NDArray[np.int64]) -> Tokens:
    """Return the tokens of all but some users."""
    kept = np.ones(len(tokens.offsets) - 1, bool)
    kept[users] = False
    return _take(tokens, np.flatnonzero(np.repeat(kept, np.diff(tokens.offsets))))


def _merge_users(results: list[Tokens]) -> Tokens:
    """Merge tokens of the same users, each of whom has tokens in one of them."""
    if len(results) == 1:
        return results[0]
    owner = np.concatenate([np.repeat(np.arange(len(p.offsets) - 1), np.diff(p.offsets)) for p in results])
    order = np.argsort(owner, kind="stable")
    lengths = np.sum([np.diff(p.offsets) for p in results], axis=0)

    def concatenate(name: str) -> NDArray[Any]:
        values = np.concatenate([getattr(p, name) for p in results])
        return values[order] if len(values) == len(order) else values

    def concatenate_sides(name: str) -> dict[str, NDArray[Any]]:
        whole = {side: np.concatenate([getattr(p, name)[side] for p in results]) for side in getattr(results[0], name)}
        return {side: values[order] for side, values in whole.items()}

    plain = {
        field.name: concatenate(field.name)
        for field in fields(Tokens)
        if field.name not in ("offsets", "sides", "available_at")
    }
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Tokens(
        offsets=offsets, sides=concatenate_sides("sides"), available_at=concatenate_sides("available_at"), **plain
    )
