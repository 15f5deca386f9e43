"""Programs of each kind of model, as functions of flat tensors.

Ranker             score     one request and its C candidates -> probabilities [C]
Reranker           score     one request and its list of C candidates -> probabilities over the list [C], and ranks
Encoder            encode    one request and its C candidates -> vectors [C, W], and codes
VectorRetriever    users     one request -> vectors [K, D]
                   items     I items -> vectors [I, D]
Generator          encode    one request -> its memory
                   step.T    the memory and W prefixes -> log-probabilities of the next token [W, V]
other retrievers   score     one request and the I items of the catalog -> scores [I]

A ranker with an explorer also has ``explore``: one request, its C candidates and noise -> probabilities and exploration
scores [C] each.

Of a ranker with states, ``score`` also reads the state before the events, and ``update.HISTORY`` maps the states of B
users and events of each to the next states.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longrec.errors import BundleError
from longrec.exploration.explorer import Explorer
from longrec.exporting.exploration_program import ExplorerProgram
from longrec.exporting.generator_programs import build_generator_programs
from longrec.exporting.inputs import (
    ENCODE,
    EXPLORE,
    ITEMS_PROGRAM,
    OUTPUT,
    SCORE,
    USERS_PROGRAM,
    VECTORS_OUTPUT,
    Input,
)
from longrec.exporting.list_program import ListProgram
from longrec.exporting.program import ProgramModule, SharedModel, build_retrieval_batch
from longrec.exporting.states import build_update_programs, list_state_inputs
from longrec.models.core.base import Model
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Encoder, Reranker, Retriever, VectorRetriever
from longrec.models.core.stateful import StatefulRanker


class UserTower(ProgramModule):
    """The vectors of one request, ``[K, D]``."""

    model: VectorRetriever
    outputs = (VECTORS_OUTPUT,)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return one vector per interest."""
        batch, _ = build_retrieval_batch(self.inputs, tensors)
        return self.model.users(batch)[0].float()


class ItemTower(ProgramModule):
    """The vectors of items, ``[I, D]``."""

    model: VectorRetriever
    outputs = (VECTORS_OUTPUT,)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the vector of every item."""
        _, items = build_retrieval_batch(self.inputs, tensors)
        return self.model.items(items).float()


class CatalogScores(ProgramModule):
    """The scores of the items of a catalog for one request, ``[I]``."""

    model: Retriever
    outputs = (OUTPUT,)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the score of every item."""
        batch, items = build_retrieval_batch(self.inputs, tensors)
        return self.model.score_catalog(batch, items)[0].float()


def build_programs(
    model: Model, inputs: Sequence[Input], states: bool = False, explorer: Explorer | None = None
) -> dict[str, ProgramModule]:
    """Return the programs of a model by name, ready to be traced.

    Args:
        states: also the programs that update states of users, see ``exporting/states.py``.
        explorer: also the program of this explorer of the model.

    Raises:
        BundleError: if a program would have no inputs, or an explorer would read states.
    """
    items = [entry for entry in inputs if entry.group == "item"]
    request = [entry for entry in inputs if entry.group != "item"]
    if not items:
        raise BundleError("schema", "no feature of the item", "a feature with side: item, so that candidates differ")
    programs: dict[str, ProgramModule]
    if states and explorer is not None:
        do = "export two bundles, one with states and one that explores"
        raise BundleError("export", "states and an explorer, which reads whole histories", "one of both", do)
    if states:
        assert isinstance(model, StatefulRanker)
        score = SharedModel(model, [*inputs, *list_state_inputs(model)])
        programs = {SCORE: score, **build_update_programs(model)}
    elif isinstance(model, VectorRetriever | Generator) and not request:
        raise BundleError(
            "schema", "no history and no feature of the user", "inputs of a request", "add a history to the schema"
        )
    elif isinstance(model, Generator):
        programs = build_generator_programs(model, request)
    elif isinstance(model, VectorRetriever):
        programs = {USERS_PROGRAM: UserTower(model, request), ITEMS_PROGRAM: ItemTower(model, items)}
    elif isinstance(model, Retriever):
        programs = {SCORE: CatalogScores(model, inputs)}
    elif isinstance(model, Reranker):
        programs = {SCORE: ListProgram(model, inputs)}
    else:
        programs = {ENCODE if isinstance(model, Encoder) else SCORE: SharedModel(model, inputs)}
    if explorer is not None:
        programs[EXPLORE] = ExplorerProgram(explorer)
    return {name: program.eval() for name, program in programs.items()}
