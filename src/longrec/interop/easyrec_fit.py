"""Conversion of EasyRec's training settings to the ``fit`` and ``evaluate`` sections."""

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
    """Return True if the rows of evaluation choose the weights, so that they are valid and not test."""
    export = top.section("export_config")
    return bool(export.get("enable_early_stop", False)) or export.get("exporter_type", "final") == "best"


def convert_fit(top: Section, wide: bool, l2: Section | None, tasks: Tasks, rows: Rows) -> dict[str, Any]:
    """Return the ``fit`` section.

    Args:
        wide: the model has a wide part, whose optimizer is the first of several.
        l2: the settings of the model, with its ``l2_regularization``.
        tasks: the towers of the model, whose names are suffixes of metrics.
        rows: the columns, one of which may hold weights of the rows.
    """
    train, data = top.section("train_config"), top.section("data_config")
    settings: dict[str, Any] = {}
    _put(settings, "epochs", data, "num_epochs", data.get("num_epochs", 0) or ENDLESS)
    if train.get("num_steps", 0):
        _put(settings, "max_steps", train, "num_steps", train.get("num_steps"))
    elif not data.get("num_epochs", 0):
        train.fault("num_steps", "and data_config.num_epochs are both 0 or missing; expected one of them: when to stop")
    _put(settings, "batch_size", data, "batch_size", data.get("batch_size", 32))
    settings |= _convert_sample_weight(data, rows)
    settings |= _convert_optimizers(train, wide)
    decay = l2.get("l2_regularization", 1e-4) if l2 is not None else 0.0
    if decay and l2 is not None and settings.get("optimizer") != "adamw":
        _put(settings, "weight_decay", l2, "l2_regularization", decay)
    elif decay and l2 is not None:
        l2.note("l2_regularization", "not carried", "fit.weight_decay holds the weight_decay of the optimizer")
    model = top.section("model_config")
    _put(settings, "l2", model, "embedding_regularization", model.get("embedding_regularization", 0.0))
    if train.get("gradient_clipping_by_norm", 0.0):
        _put(settings, "clip_norm", train, "gradient_clipping_by_norm", train.get("gradient_clipping_by_norm"))
    settings |= _convert_monitor(top, tasks)
    _put(settings, "log_steps", train, "log_step_count_steps", train.get("log_step_count_steps", 10))
    if train.has("save_checkpoints_secs"):
        _put(settings, "checkpoint_seconds", train, "save_checkpoints_secs", train.get("save_checkpoints_secs"))
    else:
        _put(settings, "checkpoint_steps", train, "save_checkpoints_steps", train.get("save_checkpoints_steps", 1000))
    if train.get("intra_op_parallelism_threads", 0):
        _put(settings, "threads", train, "intra_op_parallelism_threads", train.get("intra_op_parallelism_threads"))
    return settings


def convert_evaluate(top: Section) -> dict[str, Any]:
    """Return the ``evaluate`` section. Read the metrics that are always measured, so that they count as converted."""
    settings: dict[str, Any] = {}
    for metrics in top.section("eval_config").all("metrics_set"):
        metrics.get("auc")
        metrics.section("gauc").get("reduction")
    data = top.section("data_config")
    if data.has("eval_batch_size"):
        settings["batch_size"] = data.get("eval_batch_size")
        data.record_origin("evaluate.batch_size", "eval_batch_size")
    return settings


def _convert_sample_weight(data: Section, rows: Rows) -> dict[str, Any]:
    """Convert the column with the weights of the rows, if there is one."""
    column = data.get("sample_weight", "")
    if not column or not (rows.parquet or rows.require(column, data, "sample_weight")):
        return {}
    if rows.types.get(column) == "text":
        data.fault("sample_weight", f"names the column {column!r}, which is declared as text; expected a number")
    data.record_origin("fit.sample_weight", "sample_weight")
    return {"sample_weight": column}


def _put(settings: dict[str, Any], key: str, section: Section, name: str, value: Any) -> None:
    settings[key] = value
    section.record_origin(f"{FIT}.{key}", name)


def _convert_monitor(top: Section, tasks: Tasks) -> dict[str, Any]:
    """Convert the metric that chooses the weights, and early stopping."""
    export = top.section("export_config")
    metric = tasks.strip_tower_name(export.get("best_exporter_metric", "auc"))
    bigger = export.get("metric_bigger", True)
    export.get("max_check_steps")
    if not picks_best(top):
        return {}
    monitor = _MONITORS.get(metric)
    if monitor is None:
        export.fault("best_exporter_metric", f"is {metric!r}; expected one of {', '.join(_MONITORS)}")
    elif bigger != (monitor != "log_loss"):
        export.fault("metric_bigger", f"is {str(bigger).lower()}, but {metric} is better the other way round")
    settings: dict[str, Any] = {"monitor": monitor or "auc"}
    export.record_origin("fit.monitor", "best_exporter_metric")
    if not export.get("enable_early_stop", False):
        settings["patience"] = 0
    return settings


def _convert_optimizers(train: Section, wide: bool) -> dict[str, Any]:
    """Convert optimizers, rates and schedule.

    EasyRec has one optimizer for all, or one for the tables before one for the rest. A wide part may have its own
    before both.
    """
    optimizers: list[Section] = train.all("optimizer_config")
    if not optimizers:
        return {"optimizer": "adam", "lr": 0.002}
    most = 3 if wide else 2
    if len(optimizers) > most:
        train.reading.fault(
            optimizers[most].position, f"{optimizers[most].path} is optimizer {most + 1}; expected {most} at most"
        )
        return {}
    first_of_wide = wide and len(optimizers) > 1
    if first_of_wide and (own := optimizers[0].written_field("optimizer")) is not None:
        optimizers[0].section(own)
        optimizers[0].note(own, "not carried", "the wide part follows the optimizer of the tables")
    rest = optimizers[1:] if first_of_wide else optimizers
    dense, tables = rest[-1], rest[0]
    for one in (dense, tables):
        one.get("embedding_learning_rate_multiplier")
    settings = _convert_dense_optimizer(dense)
    if tables is dense:
        settings["embedding_optimizer"] = _convert_embedding_optimizer(dense)
        factor = dense.get("embedding_learning_rate_multiplier")
        if factor is not None:
            _put(
                settings, "embedding_lr", dense, "embedding_learning_rate_multiplier", factor * settings.get("lr", 0.0)
            )
        return settings
    other = _convert_dense_optimizer(tables)
    settings["embedding_optimizer"] = _convert_embedding_optimizer(tables)
    settings["embedding_lr"] = other.get("lr", settings.get("lr"))
    train.reading.origins["fit.embedding_lr"] = tables.position
    if other.get("schedule") != settings.get("schedule"):
        train.reading.note(
            tables.position, tables.path, "differs", "both rates follow the schedule of the dense optimizer"
        )
    for key in ("betas", "initial_accumulator_value", "momentum"):
        if key in other and other[key] != settings.setdefault(key, other[key]):
            train.reading.note(tables.position, tables.path, "differs", f"fit.{key} is one for both: {settings[key]}")
    return settings


def _convert_embedding_optimizer(optimizer: Section) -> str:
    kind = optimizer.written_field("optimizer")
    return {"adagrad_optimizer": "adagrad", "momentum_optimizer": "sgd", "momentumw_optimizer": "sgd"}.get(
        kind or "", "lazy_adam"
    )


def _convert_dense_optimizer(optimizer: Section) -> dict[str, Any]:
    kind = optimizer.written_field("optimizer")
    if kind is None:
        optimizer.reading.fault(
            optimizer.position, f"{optimizer.path} names no optimizer; expected one such as adam_optimizer"
        )
        return {}
    if kind == "ftrl_optimizer":
        optimizer.fault(kind, "is only for a wide part, before the optimizer of the rest; expected adam_optimizer")
        return {}
    if kind == "rms_prop_optimizer":
        return {}
    own = optimizer.section(kind)
    settings: dict[str, Any] = {}
    path = f"{FIT}.optimizer"
    optimizer.record_origin(path, kind)
    if kind in _LAZY:
        settings["optimizer"] = "adamw" if kind in _DECOUPLED else "adam"
    else:
        settings["optimizer"] = "adagrad" if kind == "adagrad_optimizer" else "sgd"
    settings |= _convert_rate(own)
    if kind in _LAZY:
        betas = [own.get("beta1", 0.9), own.get("beta2", 0.999)]
        if betas != [0.9, 0.999]:
            _put(settings, "betas", own, "beta1" if own.has("beta1") else "beta2", betas)
    if kind == "adagrad_optimizer":
        _put(
            settings,
            "initial_accumulator_value",
            own,
            "initial_accumulator_value",
            own.get("initial_accumulator_value", 0.1),
        )
    if kind.startswith("momentum"):
        _put(settings, "momentum", own, "momentum_optimizer_value", own.get("momentum_optimizer_value", 0.9))
    if kind in (*_DECOUPLED, "momentumw_optimizer"):
        _put(settings, "weight_decay", own, "weight_decay", own.get("weight_decay", 1e-6))
    return settings


def _convert_rate(optimizer: Section) -> dict[str, Any]:
    """Convert learning rate, warm-up and schedule."""
    rates = optimizer.section("learning_rate")
    kind = rates.written_field("rate")
    if kind is None:
        rates.reading.fault(rates.position, f"{rates.path} names no rate; expected one such as constant_learning_rate")
        return {}
    own = rates.section(kind)
    settings, origin = _CURVES[kind](own)
    own.record_origin("fit.lr", origin)
    for key in ("schedule", "warmup_steps", "warmup_from"):
        own.reading.origins[f"fit.{key}"] = own.position
    return settings


def _convert_constant(own: Section) -> tuple[dict[str, Any], str]:
    return {"lr": own.get("learning_rate", 0.002)}, "learning_rate"


def _convert_exponential(own: Section) -> tuple[dict[str, Any], str]:
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


def _convert_manual(own: Section) -> tuple[dict[str, Any], str]:
    settings: dict[str, Any] = {"lr": own.get("initial_learning_rate", 0.002)}
    steps = [(one.get("step", 0), one.get("learning_rate", 0.002)) for one in own.all("schedule")]
    ramp = own.get("warmup", False)
    if steps:
        at, rates = [step for step, _ in steps], [rate for _, rate in steps]
        settings["schedule"] = {"name": "step", "at": at, "rates": rates, **({"ramp": True} if ramp else {})}
    return settings, "initial_learning_rate"


def _convert_cosine(own: Section) -> tuple[dict[str, Any], str]:
    total, rise = own.get("total_steps", 4_000_000), own.get("warmup_steps", 10_000)
    start, hold = own.get("warmup_learning_rate", 0.0002), own.get("hold_base_rate_steps", 0) + rise
    if total <= hold:
        own.fault("total_steps", f"is {total}; expected more than the {hold} steps of warm-up and hold")
    schedule = {"name": "cosine", "steps": max(total - hold, 1), **({"hold": hold} if hold else {})}
    warm = {"warmup_steps": rise, "warmup_from": start} if rise else {}
    return {"lr": own.get("learning_rate_base", 0.002), **warm, "schedule": schedule}, "learning_rate_base"


def _convert_polynomial(own: Section) -> tuple[dict[str, Any], str]:
    _require_fields(own, "learning_rate_base", "total_steps", "power")
    schedule = {
        "name": "polynomial",
        "steps": own.get("total_steps", 1),
        "power": own.get("power", 1.0),
        "floor": own.get("end_learning_rate", 0.0),
    }
    return {"lr": own.get("learning_rate_base", 0.002), "schedule": schedule}, "learning_rate_base"


def _convert_transformer(own: Section) -> tuple[dict[str, Any], str]:
    _require_fields(own, "learning_rate_base", "hidden_size", "warmup_steps")
    schedule = {
        "name": "transformer",
        "width": own.get("hidden_size", 1),
        "warmup": own.get("warmup_steps", 1),
        "scale": own.get("step_scaling_rate", 1.0),
    }
    return {"lr": own.get("learning_rate_base", 0.002), "schedule": schedule}, "learning_rate_base"


def _require_fields(own: Section, *names: str) -> None:
    for name in names:
        if not own.has(name):
            own.fault(name, "is missing; expected a number")


_CURVES = {
    "constant_learning_rate": _convert_constant,
    "exponential_decay_learning_rate": _convert_exponential,
    "manual_step_learning_rate": _convert_manual,
    "cosine_decay_learning_rate": _convert_cosine,
    "poly_decay_learning_rate": _convert_polynomial,
    "transformer_learning_rate": _convert_transformer,
}
