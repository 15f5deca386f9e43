"""Last stage of a pipeline: frequency caps, quotas and fixed slots of the page that is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.duration import parse_duration
from longrec.pipeline.arrange import arrange
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.mix_config import Cap, MixConfig, Selection
from longrec.pipeline.stage import Query
from longrec.pipeline.trace import CAP, QUOTA
from longrec.serve.item_attributes import ItemAttribute

CountItems = Callable[[Query, int], Mapping[Any, int]]
"""Function from a query and a timestamp to how often the user had each item from then until before the query."""


class MixStage:
    """Stage that leaves out items over a frequency cap and arranges a page of k items by quotas and slots.

    Args:
        config: the rules.
        attributes: attributes of items by name.
        counters: counts of items for the two kinds of caps.
        per_second: units of timestamps per second: 1,000 for milliseconds, 1 for steps.
        name: name of the stage.
        explores: an explore stage follows. The query then holds the candidates that it may take without breaking a
            quota of most items.
    """

    def __init__(
        self,
        config: MixConfig,
        attributes: Mapping[str, ItemAttribute],
        counters: Mapping[str, CountItems],
        per_second: int,
        name: str = "mix",
        *,
        explores: bool = False,
    ) -> None:
        self._explores = explores
        self.config, self.name, self._attributes, self._counters = config, name, attributes, counters
        self._spans = [parse_duration(cap.within) * per_second // 1_000 for cap in config.caps]
        self._values = {
            id(rule): None if rule.value is None else attributes[str(rule.attribute)].encode(rule.value)
            for rule in (*config.quotas, *config.slots)
        }

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Leave out items over a cap and arrange the page."""
        for cap, span in zip(self.config.caps, self._spans):
            candidates = self._apply_cap(cap, span, candidates, query)
        if not self.config.quotas and not self.config.slots:
            return candidates
        groups, least, most = self._list_groups(candidates, query)
        slots: dict[int, Hashable] = {slot.position: ("slot", at) for at, slot in enumerate(self.config.slots)}
        page = arrange(groups, query.k, least, most, slots)
        if self._explores:
            used = Counter(group for index in page[:-1] for group in groups[index])  # the last item gives way
            rest = [
                index
                for index, own in enumerate(groups)
                if index not in page and all(used[group] < most[group] for group in own if group in most)
            ]
            query.explored.reserve = candidates.take(np.array([*page, *rest], np.int64))
        if query.trace is not None:
            # The page is what most quotas leave: a candidate of the first k without one is there.
            passed = np.setdiff1d(np.arange(min(query.k, len(candidates))), page)
            query.trace.drop(candidates.keys[passed], QUOTA)
        return candidates.take(np.array(page, np.int64))

    def _apply_cap(self, cap: Cap, span: int, candidates: Candidates, query: Query) -> Candidates:
        counts = self._counters[cap.counted](query, query.timestamp - span)
        over = np.array([counts.get(key, 0) >= cap.at_most for key in candidates.keys.tolist()], bool)
        if not over.any():
            return candidates
        if query.trace is not None:
            query.trace.drop(candidates.keys[over], CAP)
        return candidates.take(np.flatnonzero(~over))

    def _list_groups(
        self, candidates: Candidates, query: Query
    ) -> tuple[list[list[Hashable]], dict[Hashable, int], dict[Hashable, int]]:
        """Return the groups of each candidate, and the least and most items of groups."""
        groups: list[list[Hashable]] = [[] for _ in range(len(candidates))]
        least, most = dict[Hashable, int](), dict[Hashable, int]()
        read: dict[str, list[tuple[int, ...]]] = {}
        for at, quota in enumerate(self.config.quotas):
            members = self._find_members(quota, candidates, query, read)
            for own, values in zip(groups, members):
                own += [("quota", at, value) for value in values]
            every = {value for values in members for value in values}
            if quota.at_most is not None:
                most.update({("quota", at, value): quota.at_most for value in every})
            if quota.at_least is not None and every:
                total = sum(map(bool, members))
                least[("quota", at, next(iter(every)))] = min(quota.at_least, total)
        for at, slot in enumerate(self.config.slots):
            for own, values in zip(groups, self._find_members(slot, candidates, query, read)):
                own += [("slot", at)] if values else []
        return groups, least, most

    def _find_members(
        self, rule: Selection, candidates: Candidates, query: Query, read: dict[str, list[tuple[int, ...]]]
    ) -> Sequence[Sequence[int]]:
        """Return the values by which each candidate is in a selection: any of an attribute, else one or none."""
        if rule.source is not None:
            bit = candidates.sources.index(rule.source) if rule.source in candidates.sources else None
            inside = np.zeros(len(candidates), bool) if bit is None else (candidates.via >> bit & 1).astype(bool)
            return [(1,) if own else () for own in inside.tolist()]
        name = str(rule.attribute)
        if name not in read:
            read[name] = self._attributes[name].read(candidates.keys, query.timestamp)
        value = self._values[id(rule)]
        return read[name] if value is None else [(value,) if value in own else () for own in read[name]]


def count_keys(keys: NDArray[Any]) -> Mapping[Any, int]:
    """Return how often each key is in an array."""
    return Counter(keys.tolist())
