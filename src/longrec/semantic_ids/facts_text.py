"""Text of the facts about semantic IDs: what a fit has measured, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longrec.semantic_ids.tokenizer import Tokenizer
from longrec.terminal_text import table


def format_facts(tokenizer: Tokenizer, facts: Mapping[str, Any], version: int, added: int = 0) -> str:
    """Return the items, a table of the levels, the collisions and what the capacity has changed.

    Args:
        added: number of items that the newest version has added. 0 for the first version.
    """
    levels, size, _ = tokenizer.codebooks.shape
    lines = [
        f"{facts.get('items', 0):,} items, {levels} level{'s' if levels > 1 else ''} of {size:,} codes "
        f"({tokenizer.name}), version {version}"
        + (f", which added {added:,} item{'s' if added > 1 else ''}" if added else "")
    ]
    if facts.get("levels"):
        lines.append(_format_levels(facts["levels"], size))
    if "colliding" in facts:
        lines.append(_format_collisions(facts, levels))
    lines += _format_capacity(facts.get("levels", ()))
    if facts.get("events", {}).get("unknown"):
        lines.append(f"events: {facts['events']['unknown']:,} of {facts['events']['events']:,} are of other items")
    return "\n".join(lines)


def _format_levels(levels: Sequence[Mapping[str, Any]], size: int) -> str:
    """Return a table with a row per level."""
    rows = []
    first = levels[0]["energy"] or 1.0
    for number, level in enumerate(levels, 1):
        report = level.get("capacity")
        moved = [] if report is None else [report["moved"], report["violations"]]
        share = f"{100 * level['inertia'] / first:.1f} %"
        rows.append([number, f"{level['inertia']:.6g}", share, f"{level['active']:,} of {size:,}", *moved])
    more = ["moved", "violations"] if levels[0].get("capacity") is not None else []
    return table(["level", "inertia", "energy left", "active codes", *more], rows)


def _format_collisions(facts: Mapping[str, Any], levels: int) -> str:
    items, colliding = facts["items"], facts["colliding"]
    if not colliding:
        return "collisions: none"
    return (
        f"collisions: {colliding:,} of {items:,} items ({100 * facts['collision_rate']:.1f} %) share their codes with "
        f"another, at most {facts['largest_group']:,} items; code_{levels + 1} tells them apart"
    )


def _format_capacity(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    reports = [level["capacity"] for level in levels if level.get("capacity") is not None]
    if not reports:
        return []
    first, violations = reports[0], sum(report["violations"] for report in reports)
    lines = [f"capacity: at most {first['load_limit']:,.6g} and {first['item_limit']:,} items per code"]
    if first["clipped"]:
        lines.append(f"  {first['clipped']:,} items are heavier than that, and count as that")
    if first["floored"]:
        lines.append(f"  {first['floored']:,} items weigh less than the floor, and count as the floor")
    if violations:
        lines.append(
            f"  {violations:,} codes are above it, because their items fit nowhere else: see semantic_ids.json"
        )
    return lines
