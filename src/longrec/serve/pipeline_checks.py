"""Checks of a pipeline against its bundles, before any is opened: all faults at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from longrec.errors import BundleError, ConfigError, DataError, nearest
from longrec.exporting.bundle import RANKER, RERANKER, RETRIEVER
from longrec.exporting.inputs import SCORE, USERS_PROGRAM
from longrec.exporting.item_columns import read_item_columns
from longrec.features.raw_columns import list_candidate_columns
from longrec.pipeline.config import PipelineConfig
from longrec.pipeline.formula import Formula
from longrec.pipeline.mix_config import Selection
from longrec.pipeline.stage_columns import list_rerank_names, list_stage_columns
from longrec.serve.bundle_headers import BundleHeader
from longrec.serve.explore_checks import list_explore_faults
from longrec.serve.item_attributes import KINDS, encode_value, is_attribute
from longrec.serve.item_conditions import ItemConditions
from longrec.serve.rank_stage import list_formula_names

_KINDS = {"recall": RETRIEVER, "rerank": RERANKER}


def list_bundles(config: PipelineConfig) -> dict[str, str]:
    """Return the bundles of a pipeline by the path of their key, sources first."""
    bundles = {f"recall.{name}.bundle": source.bundle for name, source in config.recall.items()}
    for section, own in (("prerank", config.prerank), ("rank", config.rank)):
        if own is not None:
            bundles[f"{section}.bundle"] = own.bundle
    bundles |= {f"rerank.{at}.bundle": one.bundle for at, one in enumerate(config.rerank) if one.bundle is not None}
    if config.explore is not None:
        default = "" if config.rank is None else config.rank.bundle
        bundles["explore.bundle"] = config.explore.bundle or default
    return bundles


def check_pipeline(config: PipelineConfig, folder: Path, where: str) -> dict[str, BundleHeader]:
    """Check that the bundles of a pipeline exist, are of the right kinds and fit together.

    Args:
        folder: folder that paths are relative to.
        where: the file, for errors.

    Returns:
        The facts of each bundle, by the path of its key.

    Raises:
        ConfigError: if there are faults. All are listed.
    """
    headers, faults = dict[str, BundleHeader](), list[str]()
    for key, path in list_bundles(config).items():
        wanted = _KINDS.get(key.partition(".")[0], RANKER)
        try:
            header = BundleHeader.read(folder / path)
        except BundleError as error:
            faults.append(
                f"{key}: {path}: {error.found}; expected {error.expected}" if error.expected else f"{key}: {error}"
            )
            continue
        headers[key] = header
        if header.manifest.kind != wanted:
            faults.append(f"{key}: {path} is a bundle of a {header.manifest.kind}; expected one of a {wanted}")
    faults += _list_unit_faults(headers)
    if not faults:  # what follows reads the bundles of right kinds
        for section, own in (("prerank", config.prerank), ("rank", config.rank)):
            if own is not None and own.score is not None:
                faults += _list_formula_faults(section, own.score, headers[f"{section}.bundle"])
        for key, header in headers.items():
            if not key.startswith("recall."):
                faults += _list_candidate_faults(key, config, header)
        faults += _list_filter_faults(config, headers)
        faults += _list_rerank_faults(config, headers)
        faults += _list_mix_faults(config, headers)
        faults += list_explore_faults(config, headers)
    if faults:
        raise ConfigError(where, faults)
    return headers


def _list_unit_faults(headers: Mapping[str, BundleHeader]) -> Iterator[str]:
    """Yield bundles whose keys or timestamps have another type than those of the first one."""
    if not headers:
        return
    first_key, first = next(iter(headers.items()))
    for key, header in headers.items():
        for what in ("users", "items", "time"):
            own, expected = getattr(header, what), getattr(first, what)
            if own != expected:
                shown = "times" if what == "time" else f"keys of {what}"
                yield f"{key}: {shown} as {own}; expected {expected}, as in {first_key}"
        if header.fitted.schema.prejoined:
            yield f"{key}: a bundle with histories in the request; expected one that stores histories"
        if header.fitted.schema.user is None or header.fitted.schema.item is None:
            yield f"{key}: a bundle of a schema without user or item; expected one with both"


def _list_candidate_faults(key: str, config: PipelineConfig, header: BundleHeader) -> list[str]:
    """Return the columns of the candidate that no stage before a ranker or re-ranker fills."""
    section, at, *_ = key.split(".")
    stage = list_rerank_names(config)[int(at)] if section == "rerank" else section
    filled = list_stage_columns(config, stage)
    unknown = [column for column in list_candidate_columns(header.fitted) if column not in filled]
    if not unknown:
        return []
    near = {column: nearest(column, filled) for column in unknown}
    hints = [f"{column} (did you mean {near[column]}?)" if near[column] else column for column in unknown]
    what = f"{key}: reads columns of the candidate that no stage before it fills: {', '.join(hints)}"
    return [f"{what}; expected {', '.join(filled)}"]


def _list_formula_faults(section: str, formula: str, header: BundleHeader) -> list[str]:
    outputs = [output.name for output in header.manifest.programs[SCORE].outputs]
    return [f"{section}.score: {fault}" for fault in Formula(formula).check_names(tuple(list_formula_names(outputs)))]


def _list_filter_faults(config: PipelineConfig, headers: Mapping[str, BundleHeader]) -> list[str]:
    """Return why the condition cannot be evaluated on the items of a source."""
    where, faults = config.filter.where, list[str]()
    for key in (f"recall.{name}.bundle" for name in config.recall) if where is not None else ():
        columns = read_item_columns(headers[key].path)
        if columns is None:
            do = "export it from a log with an item table (data.items)"
            faults.append(f"filter.where: reads raw columns of items, and {key} has none; {do}")
            continue
        try:
            ItemConditions(columns).match(str(where), "filter.where")
        except ConfigError as error:
            faults += [f"filter.where: {fault} (of {key})" for fault in error.faults]
    return faults


def _list_rerank_faults(config: PipelineConfig, headers: Mapping[str, BundleHeader]) -> Iterator[str]:
    for at, one in enumerate(config.rerank):
        if one.vectors is not None:
            header = headers[f"recall.{one.vectors}.bundle"]
            if USERS_PROGRAM not in header.manifest.programs:
                model = header.manifest.model
                expected = "a retriever with vectors, or attribute"
                yield f"rerank.{at}.vectors: {one.vectors} ({model}) has no vectors of items; expected {expected}"
        if one.attribute is not None:
            yield from _list_attribute_faults(f"rerank.{at}.attribute", one.attribute, headers)


def _list_mix_faults(config: PipelineConfig, headers: Mapping[str, BundleHeader]) -> Iterator[str]:
    if config.mix is None:
        return
    rules: Mapping[str, tuple[Selection, ...]] = {"quotas": config.mix.quotas, "slots": config.mix.slots}
    for section, own in rules.items():
        for at, rule in enumerate(own):
            if rule.attribute is None:
                continue
            faults = list(_list_attribute_faults(f"mix.{section}.{at}.attribute", rule.attribute, headers))
            yield from faults
            if rule.value is not None and not faults:
                yield from _list_value_faults(f"mix.{section}.{at}.value", rule, headers)
    for at, cap in enumerate(config.mix.caps):
        if cap.counted == "shown" and config.log is None:
            yield f"mix.caps.{at}: counts shown items and needs log; write log: impressions/, or counted: events"


def _list_value_faults(key: str, rule: Selection, headers: Mapping[str, BundleHeader]) -> list[str]:
    name = str(rule.attribute)
    try:
        encode_value(find_attribute(name, headers).fitted, name, rule.value)
    except DataError as error:
        return [f"{key}: {error.found}; expected {error.expected}"]
    return []


def _list_attribute_faults(key: str, name: str, headers: Mapping[str, BundleHeader]) -> Iterator[str]:
    if any(is_attribute(header.fitted, name) for header in headers.values()):
        return
    valid_names = dict.fromkeys(
        feature for header in headers.values() for feature in header.fitted.schema.features
        if is_attribute(header.fitted, feature)
    )  # fmt: skip
    near = nearest(name, valid_names)
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(valid_names) or 'none'}"
    yield f"{key}: no feature of the item named {name!r} of kind {', '.join(KINDS)} in any bundle; {hint}"


def find_attribute(name: str, headers: Mapping[str, BundleHeader]) -> BundleHeader:
    """Return the first bundle that has an attribute of the item."""
    return next(header for header in headers.values() if is_attribute(header.fitted, name))
