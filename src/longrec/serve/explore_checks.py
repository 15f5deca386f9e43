"""Checks of the section ``explore`` of a pipeline against its bundles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa

from longrec.errors import nearest
from longrec.exporting.inputs import EXPLORE, SCORE
from longrec.exporting.item_columns import read_item_columns
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.explore_config import ExploreConfig
from longrec.pipeline.formula import Formula
from longrec.serve.bundle_headers import BundleHeader
from longrec.serve.rank_stage import list_formula_names


def list_explore_faults(config: PipelineConfig, headers: Mapping[str, BundleHeader]) -> Iterator[str]:
    """Yield why a page cannot be explored."""
    if config.explore is None:
        return
    header = headers["explore.bundle"]
    explorer = header.manifest.explorer
    if EXPLORE not in header.manifest.programs or explorer is None:
        do = f"export it again: longrec export RUN {header.path.name} --overwrite --explore name=age"
        yield f"explore.bundle: {header.path.name} ({header.manifest.model}) has no program {EXPLORE}; {do}"
    else:
        yield from _list_task_faults(config, headers, explorer.task)
    yield from _list_position_faults(config, config.explore)
    yield from _list_column_faults(config.explore, header)


def _list_task_faults(config: PipelineConfig, headers: Mapping[str, BundleHeader], task: str) -> Iterator[str]:
    """Yield that the pages are ranked by other tasks than the explored one."""
    formula = None if config.rank is None else config.rank.score
    if formula is None:
        return
    read = Formula(formula).names
    outputs = [output.name for output in headers["rank.bundle"].manifest.programs[SCORE].outputs]
    names = list_formula_names(outputs)
    same = {one for one, output in names.items() if output == names.get(task)}
    if not same & set(read) and "score" not in read:
        do = f"export the explorer with task={read[0]}" if read else "name a task in rank.score"
        yield f"explore.bundle: explores {task}, which rank.score does not read ({', '.join(read)}); {do}"


def _list_position_faults(config: PipelineConfig, own: ExploreConfig) -> Iterator[str]:
    """Yield that no page has the position, or that other rules need the positions behind it."""
    total = sum(source.count for source in config.recall.values())
    total = total if config.merge.count is None else min(total, config.merge.count)
    if own.position > total:
        yield f"explore.position: {own.position} is behind all {total:,} candidates; expected at most {total:,}"
    for at, slot in enumerate(() if config.mix is None else config.mix.slots):
        if slot.position >= own.position:
            what = f"explore.position: {own.position} moves the fixed position {slot.position} (mix.slots.{at})"
            yield f"{what}; explore behind all fixed positions"


def _list_column_faults(own: ExploreConfig, header: BundleHeader) -> Iterator[str]:
    if own.below is None:
        return
    name, columns = own.below.column, read_item_columns(header.path)
    if columns is None:
        do = "export it from a log with an item table (data.items)"
        yield f"explore.below: reads a raw column of items, and explore.bundle has none; {do}"
        return
    numeric = [one.name for one in columns.schema if pa.types.is_integer(one.type) or pa.types.is_floating(one.type)]
    numeric = [one for one in numeric if one != columns.column_names[0]]
    if name in numeric:
        return
    if name == columns.column_names[0]:
        yield f"explore.below.column: {name} is the key of the items; with numbers: {', '.join(numeric) or 'none'}"
        return
    if name in columns.column_names:
        yield f"explore.below.column: {name} has the type {columns.schema.field(name).type}; expected numbers"
        return
    near = nearest(name, columns.column_names)
    hint = f"did you mean {near!r}?" if near else f"with numbers: {', '.join(numeric) or 'none'}"
    yield f"explore.below.column: no column {name!r} of the item table; {hint}"
