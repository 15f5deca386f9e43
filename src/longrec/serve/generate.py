"""Search of a generator for one request: its programs behind a beam search over the trie of its catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import LongRecError
from longrec.exporting.inputs import ENCODE, STEP, TOKEN
from longrec.generation.child_rule import ChildRule
from longrec.generation.item_search import Tokens, plan_search, search_paths
from longrec.generation.trie import Trie
from longrec.serve.open_model import OpenModel

Tensors = Mapping[str, NDArray[Any]]


class ItemGenerator:
    """Generation of items by one bundle, for use by one thread.

    Args:
        model: the bundle of a generator.
    """

    def __init__(self, model: OpenModel) -> None:
        facts, self._catalog = model.bundle.manifest.generator, model.catalog
        assert facts is not None
        self._facts, self._encode = facts, model.programs[ENCODE]
        self._steps = [model.programs[f"{STEP}{step + 1}"] for step in range(len(facts.path))]
        self._names = [f"{TOKEN}{name}" for name in facts.path]
        self._rule = ChildRule.of(facts.renormalize, facts.smoothing, facts.attributes)
        self._recent: tuple[tuple[Any, ...], Trie] | None = None

    def search(
        self,
        inputs: Tensors,
        count: int,
        fixed: NDArray[np.bool_] | None,
        allowed: NDArray[np.bool_] | None,
        check: Callable[[], None],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items, their numbers in the catalog, and their scores, best first.

        Args:
            inputs: encoded request.
            fixed: mask ``[I]`` of the items that any request may return. None: all.
            allowed: mask ``[I]`` of those that this request may return. None: all.
            check: function that raises if there is no time left. It is called before each step.

        Raises:
            LongRecError: if a score is not finite.
        """
        search = plan_search(self._select_trie(fixed), count, self._facts.beam_width, allowed)
        names = self._encode.outputs
        memory = dict(zip(names, self._encode.run_outputs(inputs, names), strict=True))
        leaf, score = search_paths(
            partial(self._score_tokens, memory),
            search.trie,
            search.width,
            self._rule,
            check=check,
        )
        return search.list_items(leaf, score, count)

    def _score_tokens(self, memory: Tensors, prefix: Tokens) -> NDArray[np.float32]:
        """Return what each next token adds to the score of each prefix."""
        scores = self._steps[len(prefix)].run({**memory, **dict(zip(self._names, prefix))})
        if not np.isfinite(scores).all():
            where = f"token {self._facts.path[len(prefix)]!r}"
            raise LongRecError(where, "a log-probability that is not finite", "finite log-probabilities")
        return scores

    def _select_trie(self, fixed: NDArray[np.bool_] | None) -> Trie:
        """Return the trie of the items that any request may return. The last one is used again for the same mask."""
        trie = self._catalog.trie
        assert trie is not None
        if fixed is None:
            return trie
        key = (trie, fixed)
        if self._recent is None or any(one is not other for one, other in zip(self._recent[0], key)):
            self._recent = key, trie.select(fixed)
        return self._recent[1]
