"""Pipelines of a service by route: what a bundle of a ranker or a retriever, or of both, can answer."""

from __future__ import annotations

from longrec.errors import BundleError
from longrec.exporting.bundle import RANKER, RERANKER, RETRIEVER, Bundle
from longrec.pipeline.rank import TopStage
from longrec.pipeline.stage import Pipeline, Stage
from longrec.serve.open_model import OpenModel
from longrec.serve.rank_stage import RankStage
from longrec.serve.rerank_stage import RerankStage
from longrec.serve.retrieve_stage import RetrieveStage
from longrec.serve.state import check_same_units

RANK, RECOMMEND = "/rank", "/recommend"
RECALLED = 500
"""Smallest number of items that a retriever passes on to a ranker."""


def build_pipelines(model: OpenModel, recall: OpenModel | None = None) -> dict[str, Pipeline]:
    """Return the pipelines of a bundle by route.

    Args:
        recall: a retriever whose items a ranker ranks.
    """
    if model.bundle.manifest.kind == RETRIEVER:
        return {RECOMMEND: Pipeline([RetrieveStage(model)])}
    if model.bundle.manifest.kind == RERANKER:
        return {RANK: Pipeline([RerankStage(model)])}
    pipelines = {RANK: Pipeline([RankStage(model)])}
    if recall is not None:
        stages: list[Stage] = [RetrieveStage(recall, RECALLED), RankStage(model, drop_unknown=True), TopStage()]
        pipelines[RECOMMEND] = Pipeline(stages)
    return pipelines


def open_recall(ranker: OpenModel, path: str) -> OpenModel:
    """Open the bundle of a retriever whose items a ranker ranks.

    Raises:
        BundleError: if the bundles are not of a ranker and a retriever, or do not fit together.
    """
    if ranker.bundle.manifest.kind != RANKER:
        kind = ranker.bundle.manifest.kind
        do = "serve it alone, or pass it with --recall beside a ranker's bundle"
        raise BundleError(f"{ranker.bundle.path}: recall", f"a bundle of a {kind}", "a bundle of a ranker", do)
    bundle = Bundle.open(path)
    if bundle.manifest.kind != RETRIEVER:
        do = "export the run of a retriever and pass its bundle"
        raise BundleError(f"{path}: recall", f"a bundle of kind {bundle.manifest.kind}", "a bundle of a retriever", do)
    check_same_units(ranker.bundle, bundle)
    if columns := ranker.encoder.candidate_context:
        raise BundleError(
            f"{ranker.bundle.path}: recall",
            f"a ranker that reads columns of the candidate ({', '.join(columns)})",
            "a ranker without them, because retrieved items have none",
            "serve it without --recall, or train it without these columns",
        )
    if any(one.fitted.schema.prejoined for one in (ranker.bundle, bundle)):
        raise BundleError(
            f"{ranker.bundle.path}: recall",
            "histories in the request",
            "bundles that store histories",
            "serve the two bundles separately",
        )
    return OpenModel(bundle)
