"""How EasyRec trains, in the words of the ``fit`` and ``evaluate`` sections."""

from __future__ import annotations

from typing import Any

from longrec.interop.easyrec_rows import Rows
from longrec.interop.easyrec_section import Section
from longrec.interop.easyrec_tasks import Tasks

ENDLESS = 100_000
"""Epochs of a run that only ``num_steps`` ends."""

_LAZY = ("adam_optimizer", "lazy_adam_optimizer", "adam_async_optimizer", "adamw_optimizer", "adam_asyncw_optimizer")
_DECOUPLED = ("adamw_optimizer", "adam_asyncw_optimizer")
_MONITORS = {"auc": "auc", "gauc": "gauc", "loss": "log_loss", "loss/loss/cross_entropy_loss": "log_loss"}
FIT = "fit"


def picks_best(top: Section) -> bool:
    """Whether the rows of evaluation choose the weights, so that they are valid and not test."""
    export = top.section("export_config")
    return bool(export.get("enable_early_stop", False)) or export.get("exporter_type", "final") == "best"


def fit_words(top: Section, wide: bool, l2: Section | None, tasks: Tasks, rows: Rows) -> dict[str, Any]:
    """The ``fit`` section.

    Args:
        wide: the model has a wide part, whose optimiser stands first of several.
        l2: the settings of the model, with its ``l2_regularization``.
        tasks: the towers of the model, whose names metrics bear.
        rows: the columns, one of which may weigh the rows.
    """
    train, data = top.section("train_config"), top.section("data_config")
    words: dict[str, Any] = {}
    _put(words, "epochs", data, "num_epochs", data.get("num_epochs", 0) or ENDLESS)
    if train.get("num_steps", 0):
        _put(words, "max_steps", train, "num_steps", train.get("num_steps"))
    elif not data.get("num_epochs", 0):
        train.fault("num_steps", "and data_config.num_epochs are both 0 or missing; expected one of them: when to stop")
    _put(words, "batch_size", data, "batch_size", data.get("batch_size", 32))
    words |= _sample_weight(data, rows)
    words |= _optimisers(train, wide)
    decay = l2.get("l2_regularization", 1e-4) if l2 is not None else 0.0
    if decay and l2 is not None and words.get("optimiser") != "adamw":
        _put(words, "weight_decay", l2, "l2_regularization", decay)
    elif decay and l2 is not None:
        l2.note("l2_regularization", "not carried", "fit.weight_decay holds the weight_decay of the optimiser")
    model = top.section("model_config")
    _put(words, "l2", model, "embedding_regularization", model.get("embedding_regularization", 0.0))
    if train.get("gradient_clipping_by_norm", 0.0):
        _put(words, "clip_norm", train, "gradient_clipping_by_norm", train.get("gradient_clipping_by_norm"))
    words |= _looks(top, tasks)
    _put(words, "log_steps", train, "log_step_count_steps", train.get("log_step_count_steps", 10))
    if train.has("save_checkpoints_secs"):
        _put(words, "checkpoint_seconds", train, "save_checkpoints_secs", train.get("save_checkpoints_secs"))
    else:
        _put(words, "checkpoint_steps", train, "save_checkpoints_steps", train.get("save_checkpoints_steps", 1000))
    if train.get("intra_op_parallelism_threads", 0):
        _put(words, "threads", train, "intra_op_parallelism_threads", train.get("intra_op_parallelism_threads"))
    return words


def evaluate_words(top: Section) -> dict[str, Any]:
    """The ``evaluate`` section. The metrics that are always measured are read here, so that they count as carried."""
    words: dict[str, Any] = {}
    for metrics in top.section("eval_config").all("metrics_set"):
        metrics.get("auc")
        metrics.section("gauc").get("reduction")
    data = top.section("data_config")
    if data.has("eval_batch_size"):
        words["batch_size"] = data.get("eval_batch_size")
        data.origin("evaluate.batch_size", "eval_batch_size")
    return words


def _sample_weight(data: Section, rows: Rows) -> dict[str, Any]:
    """The column that weighs the rows, where there is one."""
    column = data.get("sample_weight", "")
    if not column or not (rows.parquet or rows.require(column, data, "sample_weight")):
        return {}
    if rows.types.get(column) == "text":
        data.fault("sample_weight", f"names the column {column!r}, which is declared as text; expected a number")
    data.origin("fit.sample_weight", "sample_weight")
    return {"sample_weight": column}


def _put(words: dict[str, Any], key: str, section: Section, name: str, value: Any) -> None:
    words[key] = value
    section.origin(f"{FIT}.{key}", name)


def _looks(top: Section, tasks: Tasks) -> dict[str, Any]:
    """When valid is looked at, and what is done about it."""
    export = top.section("export_config")
    metric = tasks.plain(export.get("best_exporter_metric", "auc"))
    bigger = export.get("metric_bigger", True)
    export.get("max_check_steps")
    if not picks_best(top):
        return {}
    monitor = _MONITORS.get(metric)
    if monitor is None:
        export.fault("best_exporter_metric", f"is {metric!r}; expected one of {', '.join(_MONITORS)}")
    elif bigger != (monitor != "log_loss"):
        export.fault("metric_bigger", f"is {str(bigger).lower()}, but {metric} is better the other way round")
    words: dict[str, Any] = {"monitor": monitor or "auc"}
    export.origin("fit.monitor", "best_exporter_metric")
    if not export.get("enable_early_stop", False):
        words["patience"] = 0
    return words


def _optimisers(train: Section, wide: bool) -> dict[str, Any]:
    """Optimiser, rates and schedule: one optimiser for all, or one for the tables before one for the rest; a wide part
    may have its own before both.
    """
    given: list[Section] = train.all("optimizer_config")
    if not given:
        return {"optimiser": "adam", "lr": 0.002}
    most = 3 if wide else 2
    if len(given) > most:
        train.reading.fault(given[most].place, f"{given[most].path} is optimiser {most + 1}; expected {most} at most")
        return {}
    first_of_wide = wide and len(given) > 1
    if first_of_wide and (own := given[0].which("optimizer")) is not None:
        given[0].section(own)
        given[0].note(own, "not carried", "the wide part follows the optimiser of the tables")
    rest = given[1:] if first_of_wide else given
    dense, tables = rest[-1], rest[0]
    for one in (dense, tables):
        one.get("embedding_learning_rate_multiplier")
    words = _dense(dense)
    if tables is dense:
        words["tables_optimiser"] = _tables(dense)
        factor = dense.get("embedding_learning_rate_multiplier")
        if factor is not None:
            _put(words, "tables_lr", dense, "embedding_learning_rate_multiplier", factor * words.get("lr", 0.0))
        return words
    other = _dense(tables)
    words["tables_optimiser"] = _tables(tables)
    words["tables_lr"] = other.get("lr", words.get("lr"))
    train.reading.origins["fit.tables_lr"] = tables.place
    if other.get("schedule") != words.get("schedule"):
        train.reading.note(
            tables.place, tables.path, "differs", "both rates follow the schedule of the dense optimiser"
        )
    for key in ("betas", "accumulator", "momentum"):
        if key in other and other[key] != words.setdefault(key, other[key]):
            train.reading.note(tables.place, tables.path, "differs", f"fit.{key} is one for both: {words[key]}")
    return words


def _tables(optimiser: Section) -> str:
    kind = optimiser.which("optimizer")
    return {"adagrad_optimizer": "adagrad", "momentum_optimizer": "sgd", "momentumw_optimizer": "sgd"}.get(
        kind or "", "lazy_adam"
    )


def _dense(optimiser: Section) -> dict[str, Any]:
    kind = optimiser.which("optimizer")
    if kind is None:
        optimiser.reading.fault(optimiser.place, f"{optimiser.path} names no optimiser; expected adam_optimizer, say")
        return {}
    if kind == "ftrl_optimizer":
        optimiser.fault(kind, "is only for a wide part, before the optimiser of the rest; expected adam_optimizer, say")
        return {}
    if kind == "rms_prop_optimizer":
        return {}
    own = optimiser.section(kind)
    words: dict[str, Any] = {}
    path = f"{FIT}.optimiser"
    optimiser.origin(path, kind)
    if kind in _LAZY:
        words["optimiser"] = "adamw" if kind in _DECOUPLED else "adam"
    else:
        words["optimiser"] = "adagrad" if kind == "adagrad_optimizer" else "sgd"
    words |= _rate(own)
    if kind in _LAZY:
        betas = [own.get("beta1", 0.9), own.get("beta2", 0.999)]
        if betas != [0.9, 0.999]:
            _put(words, "betas", own, "beta1" if own.has("beta1") else "beta2", betas)
    if kind == "adagrad_optimizer":
        _put(words, "accumulator", own, "initial_accumulator_value", own.get("initial_accumulator_value", 0.1))
    if kind.startswith("momentum"):
        _put(words, "momentum", own, "momentum_optimizer_value", own.get("momentum_optimizer_value", 0.9))
    if kind in (*_DECOUPLED, "momentumw_optimizer"):
        _put(words, "weight_decay", own, "weight_decay", own.get("weight_decay", 1e-6))
    return words


def _rate(optimiser: Section) -> dict[str, Any]:
    """Learning rate, warm-up and schedule."""
    rates = optimiser.section("learning_rate")
    kind = rates.which("rate")
    if kind is None:
        rates.reading.fault(rates.place, f"{rates.path} names no rate; expected constant_learning_rate, say")
        return {}
    own = rates.section(kind)
    made, origin = _CURVES[kind](own)
    own.origin("fit.lr", origin)
    for key in ("schedule", "warmup_steps", "warmup_from"):
        own.reading.origins[f"fit.{key}"] = own.place
    return made


def _constant(own: Section) -> tuple[dict[str, Any], str]:
    return {"lr": own.get("learning_rate", 0.002)}, "learning_rate"


def _exponential(own: Section) -> tuple[dict[str, Any], str]:
    burnin, start = own.get("burnin_steps", 0), own.get("burnin_learning_rate", 0.0)
    schedule = {
        "name": "exponential",
        "steps": own.get("decay_steps", 4_000_000),
        "factor": own.get("decay_factor", 0.95),
        "staircase": own.get("staircase", True),
        "floor": own.get("min_learning_rate", 0.0),
        **({"hold": burnin} if burnin else {}),
    }
    rise = {"warmup_steps": burnin, "warmup_from": start} if burnin and start else {}
    return {"lr": own.get("initial_learning_rate", 0.002), **rise, "schedule": schedule}, "initial_learning_rate"


def _manual(own: Section) -> tuple[dict[str, Any], str]:
    words: dict[str, Any] = {"lr": own.get("initial_learning_rate", 0.002)}
    steps = [(one.get("step", 0), one.get("learning_rate", 0.002)) for one in own.all("schedule")]
    ramp = own.get("warmup", False)
    if steps:
        at, rates = [step for step, _ in steps], [rate for _, rate in steps]
        words["schedule"] = {"name": "step", "at": at, "rates": rates, **({"ramp": True} if ramp else {})}
    return words, "initial_learning_rate"


def _cosine(own: Section) -> tuple[dict[str, Any], str]:
    total, rise = own.get("total_steps", 4_000_000), own.get("warmup_steps", 10_000)
    start, hold = own.get("warmup_learning_rate", 0.0002), own.get("hold_base_rate_steps", 0) + rise
    if total <= hold:
        own.fault("total_steps", f"is {total}; expected more than the {hold} steps of warm-up and hold")
    schedule = {"name": "cosine", "steps": max(total - hold, 1), **({"hold": hold} if hold else {})}
    warm = {"warmup_steps": rise, "warmup_from": start} if rise else {}
    return {"lr": own.get("learning_rate_base", 0.002), **warm, "schedule": schedule}, "learning_rate_base"


def _polynomial(own: Section) -> tuple[dict[str, Any], str]:
    _needs(own, "learning_rate_base", "total_steps", "power")
    schedule = {
        "name": "polynomial",
        "steps": own.get("total_steps", 1),
        "power": own.get("power", 1.0),
        "floor": own.get("end_learning_rate", 0.0),
    }
    return {"lr": own.get("learning_rate_base", 0.002), "schedule": schedule}, "learning_rate_base"


def _transformer(own: Section) -> tuple[dict[str, Any], str]:
    _needs(own, "learning_rate_base", "hidden_size", "warmup_steps")
    schedule = {
        "name": "transformer",
        "width": own.get("hidden_size", 1),
        "warmup": own.get("warmup_steps", 1),
        "scale": own.get("step_scaling_rate", 1.0),
    }
    return {"lr": own.get("learning_rate_base", 0.002), "schedule": schedule}, "learning_rate_base"


def _needs(own: Section, *names: str) -> None:
    for name in names:
        if not own.has(name):
            own.fault(name, "is missing; expected a number")


_CURVES = {
    "constant_learning_rate": _constant,
    "exponential_decay_learning_rate": _exponential,
    "manual_step_learning_rate": _manual,
    "cosine_decay_learning_rate": _cosine,
    "poly_decay_learning_rate": _polynomial,
    "transformer_learning_rate": _transformer,
}
