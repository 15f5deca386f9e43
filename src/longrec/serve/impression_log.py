"""Log of a pipeline: the rows of each answer, for its log of impressions and its frequency caps."""

from __future__ import annotations

from pathlib import Path

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.explore import Exploration
from longrec.pipeline.stage_columns import list_score_names, name_rank_column, name_score_column
from longrec.serve.impressions import ImpressionWriter, Row, build_arrow_schema
from longrec.serve.pipelines import OpenedPipeline
from longrec.serve.responses import RecommendResponse


class ImpressionLog:
    """Recorder of what a pipeline has shown.

    Args:
        pipeline: the pipeline.
        writer: writer of its log. None if it has none.
    """

    def __init__(self, pipeline: OpenedPipeline, writer: ImpressionWriter | None) -> None:
        self._pipeline, self._writer = pipeline, writer
        self._names = list_score_names(pipeline.config)

    @classmethod
    def open(cls, pipeline: OpenedPipeline, folder: Path) -> ImpressionLog:
        """Open the log of a pipeline and count what it holds.

        Args:
            folder: folder that the path of the log is relative to.

        Raises:
            ResourceError: if the log cannot be written.
        """
        settings = pipeline.config.log
        if settings is None:
            return cls(pipeline, None)
        bundle = pipeline.primary.bundle
        time = bundle.fitted.schema.time
        schema = build_arrow_schema(
            not bundle.users.keys.numeric,
            not bundle.items.keys.numeric,
            time is not None and time.unit == "step",
            [name_score_column(name) for name in list_score_names(pipeline.config)],
            [name_rank_column(source) for source in pipeline.config.recall],
            explores=pipeline.config.explore is not None,
        )
        target = folder / settings.folder
        writer = ImpressionWriter(target, schema, settings.flush_seconds, settings.rotate_seconds)
        if pipeline.shown is not None:
            pipeline.shown.load(target)
        return cls(pipeline, writer)

    def write(self, answer: RecommendResponse) -> None:
        """Add the items of an answer."""
        candidates = answer.pipeline_result.candidates
        if self._writer is not None:
            self._writer.write(self._build_rows(answer, candidates))
        if self._pipeline.shown is not None:
            self._pipeline.shown.record(answer.user, answer.timestamp, candidates.keys.tolist())

    def _build_rows(self, answer: RecommendResponse, candidates: Candidates) -> list[Row]:
        shared = {
            "request": answer.request,
            "user": answer.user,
            "timestamp": answer.timestamp,
            "policy": self._pipeline.config.name,
            "policy_digest": self._pipeline.digest,
            "new_user": answer.new_user,
            "fallbacks": ",".join(answer.pipeline_result.fallbacks) or None,
        }
        scores = {
            name_score_column(name): candidates.scores[name].tolist()
            for name in self._names
            if name in candidates.scores
        }
        ranks = {name_rank_column(name): own.tolist() for name, own in candidates.ranks.items()}
        explored = _list_explored(answer.pipeline_result.exploration, candidates)
        return [
            {
                **shared,
                **explored[number],
                "item": key,
                "position": number + 1,
                "source": source,
                **{name: values[number] for name, values in scores.items()},
                **{name: values[number] or None for name, values in ranks.items()},
            }
            for number, (key, source) in enumerate(zip(candidates.keys.tolist(), candidates.list_origins()))
        ]

    def close(self) -> None:
        """Write all rows."""
        if self._writer is not None:
            self._writer.close()


def _list_explored(exploration: Exploration | None, candidates: Candidates) -> list[Row]:
    """Return what the rows of a page say about exploration. Nothing without such a stage."""
    if exploration is None:
        return [{} for _ in range(len(candidates))]
    shared = {"bucket": exploration.bucket, "seed": exploration.seed}
    own = exploration.propensities
    propensities = [None] * len(candidates) if own is None else own.tolist()
    return [
        {**shared, "explored": key == exploration.item, "propensity": propensity}
        for key, propensity in zip(candidates.keys.tolist(), propensities, strict=True)
    ]
