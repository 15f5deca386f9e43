"""Training in Python: ``longrec.fit`` trains a model on a prepared log, as ``longrec train`` does with a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError
from longrec.prepared_log import PreparedLog
from longrec.signatures import show_settings
from longrec.training.settings import EvaluateConfig, FitConfig

if TYPE_CHECKING:
    from longrec.metrics.own import MetricsLike
    from longrec.models.core.base import Model
    from longrec.training.finished_run import Run
    from longrec.training.hooks import Hooks, OptimizerFunction
    from longrec.training.job import Job


@show_settings(FitConfig, skip=("optimizer", "embedding_optimizer"))
def fit(
    model: Model | type[Model] | str | Mapping[str, Any],
    log: PreparedLog,
    *,
    name: str | None = None,
    evaluate: EvaluateConfig | Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    optimizer: str | OptimizerFunction | None = None,
    embedding_optimizer: str | OptimizerFunction | None = None,
    metrics: MetricsLike = (),
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train a model on a prepared log, keep the weights of the best validation, and evaluate them on valid and test.

    The run is that of ``longrec train`` with a config of the same settings: the same folder, checkpoints and results,
    with the same bits.

    Args:
        model: a built model, ``longrec.models.DIN(log.fields(), attention=(80, 40))``, which is trained in place and
            has the best weights afterwards. Or a class, the name of a model, or a mapping of a name and settings, whose
            weights are drawn with ``seed``.
        log: what ``longrec.prepare`` returned.
        name: name of the run folder. Default: the name of the model, with a number.
        evaluate: settings of evaluation, such as ``{"resample": "row"}``.
        resume: folder of an interrupted run of the same call, which is continued from its last checkpoint.
        optimizer: optimizer of the dense parameters: adamw (default), adam, adagrad or sgd, or a function of the
            parameters that returns a ``torch.optim.Optimizer``, which has its own learning rate. Schedule and warm-up
            multiply it.
        embedding_optimizer: optimizer of the embedding tables: lazy_adam (default), rowwise_adam, adagrad,
            rowwise_adagrad or sgd, or a function as above. The gradients are sparse.
        metrics: metrics of one's own by name, or a list: functions of labels, scores and users that return a number, or
            ``longrec.Metric``. They are computed in validations and on the splits, with intervals, and ``monitor`` may
            name one.
        quiet: print no progress. Warnings are printed anyway.

    Returns:
        The finished run, with ``metrics``, ``history``, ``model()`` and its ``folder``.

    Warnings about a log are printed by the first training on it. They are in the results of every run.

    Raises:
        ConfigError: settings that cannot be used, all together, or a model that is already trained.
        DataError: a log that cannot be trained on. No run folder remains.
        RunError: an existing run of that name, or a loss that is not finite.
        ResourceError: a model that does not fit into the memory, or no CUDA device.
    """
    from longrec.training import fit as training

    _check_log(log)
    hooks = _read_hooks(optimizer, embedding_optimizer, metrics, settings)
    job, built = _build_job(model, log, name, evaluate, settings, hooks)
    if built is not None:
        _check_untrained(built, resume)
    if resume is None:
        run = training.start(job, built=built, hooks=hooks, quiet=quiet, printed=log.printed)
        log.printed = frozenset(log.warnings)
    else:
        run = training.resume_run(Path(resume), job, built=built, model_class=job.model_class, hooks=hooks, quiet=quiet)
    if built is not None:
        built.load_state_dict(run.model().state_dict())
        built.eval().cpu()
    return run


def _read_hooks(optimizer: Any, embedding_optimizer: Any, metrics: MetricsLike, settings: dict[str, Any]) -> Hooks:
    """Return the functions of a call. The name of an optimizer is added to the settings."""
    from longrec.metrics.own import read_metrics
    from longrec.training.hooks import Hooks

    functions = {}
    for key, value in (("optimizer", optimizer), ("embedding_optimizer", embedding_optimizer)):
        if callable(value):
            functions[key] = value
        elif value is not None:
            settings[key] = value
    return Hooks(read_metrics(metrics), **functions)


def _check_log(log: Any) -> None:
    if not isinstance(log, PreparedLog):
        fault = f"log: must be a prepared log, got {type(log).__name__}; write log = longrec.prepare(...)"
        raise ConfigError("fit", [fault])


def _build_job(
    model: Any, log: PreparedLog, name: str | None, evaluate: Any, settings: dict[str, Any], hooks: Hooks
) -> tuple[Job, Model | None]:
    """Return the job of a call, and the model to train in place, if there is one.

    Raises:
        ConfigError: all faults of the settings.
    """
    from longrec.models.core.base import Model
    from longrec.models.core.registry import name_of_class
    from longrec.training.job import build_job

    built, model_class, section = None, None, model
    if isinstance(model, type) and issubclass(model, Model):
        model_class, section = model, {"name": name_of_class(model)}
    elif isinstance(model, Model):
        built, model_class = model, type(model)
        section = {"name": name_of_class(model_class), **model.config.model_dump(mode="json")}
        settings = {**settings, "seed": _choose_seed(model, settings.get("seed"))}
    elif isinstance(model, str):
        section = {"name": model}
    elif not isinstance(model, Mapping):
        fault = f"model: must be a model, a class of models, a name, or a mapping with a name, got {model!r}"
        raise ConfigError("fit", [fault])
    settings = {key: _to_plain(value) for key, value in settings.items()}
    evaluate = evaluate.model_dump(exclude_unset=True) if isinstance(evaluate, EvaluateConfig) else evaluate or {}
    try:
        job = build_job(
            log.data,
            log.schema,
            section,
            settings,
            evaluate,
            name=name,
            where="fit",
            model_class=model_class,
            own_monitors=hooks.monitors,
            faults=hooks.find_faults(settings),
        )
    except ConfigError as error:  # settings of training are keywords here, not a section
        raise ConfigError("fit", [fault.removeprefix("fit.") for fault in error.faults]) from None
    if faults := hooks.find_misfits(job):
        raise ConfigError("fit", faults)
    return job, built


def _check_untrained(model: Model, resume: str | Path | None) -> None:
    """Refuse a model that another run has trained. The run that is resumed has its weights in a checkpoint."""
    resumed = None if resume is None else str(Path(resume).absolute())
    if model.trained_by is not None and model.trained_by != resumed:
        fault = f"model: was trained already, by {model.trained_by}"
        do = f"build a new one, give its class, or go on from these weights with init_from={model.trained_by!r}"
        raise ConfigError("fit", [f"{fault}; {do}"])


def _choose_seed(model: Model, seed: int | None) -> int:
    """Return the seed of a run: that of the weights of its model, unless one is given."""
    own = 0 if model.construction is None else model.construction.seed
    if model.construction is not None and seed is not None and seed != own:
        name = type(model).__name__
        fault = f"seed: is {seed}, but the weights of the model were drawn with seed {own}"
        raise ConfigError(
            "fit", [f"{fault}; build it with {name}(log.fields(), seed={seed}), or give the class {name}"]
        )
    return own if seed is None else seed


def _to_plain(value: Any) -> Any:
    """Return a setting as a config has it: a path or a run as text."""
    from longrec.training.finished_run import Run

    if isinstance(value, Run):
        return str(value.folder)
    return str(value) if isinstance(value, Path) else value
