"""Rules about settings of models that depend on each other, and about values with a short form.

They need no torch, so that ``longrec check`` applies them without importing a model.
"""

from __future__ import annotations

from typing import Any


def expand_number(value: Any) -> Any:
    """Return a list for a single number, of a setting that takes one value or several."""
    return (value,) if isinstance(value, int | float) else value


def expand_value(value: Any) -> Any:
    """Return a list for a single value, of a setting that takes one value or several."""
    return value if isinstance(value, list | tuple) else (value,)


def expand_switch(value: Any) -> Any:
    """Return an empty section for true and None for false, of a setting that is a section or a switch."""
    return {True: {}, False: None}.get(value, value) if isinstance(value, bool) else value


def find_iat_faults(config: Any) -> list[str]:
    """Return the faults of a source model of instance tokens."""
    faults = []
    if (config.sit_width or config.width) % config.heads:
        faults.append(f"heads: {config.heads} heads do not divide a width of {config.sit_width or config.width}")
    if config.order == "temporal":
        options = {"labels": config.labels, "direct": config.direct, "stored": config.stored == "after"}
        faults += [f"{name}: needs order: user" for name, value in options.items() if value]
    if config.stored == "after" and config.codes is not None:
        faults.append("stored: codes are of the token before SIT")
    return faults


def find_reader_faults(config: Any) -> list[str]:
    """Return the faults of a reader of instance tokens."""
    return find_width_faults(config) if config.read != "din" else []


def find_width_faults(config: Any) -> list[str]:
    """Return the faults of layers whose heads divide their width."""
    return (
        [f"heads: {config.heads} heads do not divide a width of {config.width}"] if config.width % config.heads else []
    )


def find_product_faults(config: Any) -> list[str]:
    """Return the faults of a product-based network."""
    if config.kernel == "rank_one" and config.product == "outer":
        return ["kernel: rank_one needs inner products, and product: outer has none"]
    return []


def find_sharing_faults(config: Any) -> list[str]:
    """Return the faults of a light net with a booster."""
    return ["detach_shared: needs share: true"] if config.detach_shared and not config.share else []


def find_dropout_faults(config: Any) -> list[str]:
    """Return the faults of layers with one dropout rate, or one per layer."""
    if len(config.dropout) in (1, len(config.mlp)):
        return []
    return [f"dropout has {len(config.dropout)} shares for {len(config.mlp)} layers; give one, or one per layer"]


def find_draw_faults(config: Any) -> list[str]:
    """Return the faults of the loss of a retriever."""
    if config.draw in ("in_batch", "mixed") and config.loss not in ("softmax", "bpr_max"):
        return [f"draw: {config.draw} needs loss: softmax or bpr_max, whose targets share their negatives"]
    return []


def find_alignment_faults(config: Any) -> list[str]:
    """Return the faults of the joint training by rewards and pairs."""
    faults = []
    if config.reward_weight * config.clip > 1:
        fault = f"reward_weight, clip: {config.reward_weight:g} x {config.clip:g} is more than 1"
        faults.append(f"{fault}, and a negative weight minimizes a likelihood; lower one of them")
    if config.dpo_weight and not config.levels:
        faults.append("levels: is required, the feedback that orders the items of a request; or set dpo_weight: 0")
    if len(set(config.levels)) < len(config.levels):
        faults.append("levels: names a feedback twice")
    if not config.dpo_weight and not (config.rewards and config.reward_weight):
        faults.append(
            "dpo_weight: is 0, and there are no rewards with a weight, so that nothing is learned; set either"
        )
    return faults


def find_path_faults(config: Any) -> list[str]:
    """Return the faults of the path of a generator."""
    names = [*config.attributes, *config.codes]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"attributes, codes: {name} is in the path twice; name it once" for name in twice]
