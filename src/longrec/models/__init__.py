"""Models, one paper per file, as classes that are imported on first use: ``longrec.models.DIN``.

The folder is the registry: ``din`` in a config is ``models/din.py``. ``models/core`` contains shared code and the base
classes of your own models: ``Ranker``, ``TopRanker`` with ``TopConfig``, ``VectorRetriever`` and others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec.models.alignment import Alignment
    from longrec.models.atrank import ATRank
    from longrec.models.bst import BST
    from longrec.models.can import CAN
    from longrec.models.comirec import ComiRec
    from longrec.models.core.base import Model
    from longrec.models.core.generator import Generator, GeneratorConfig
    from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever
    from longrec.models.core.kinds import (
        Encoder,
        Extractor,
        FittedRetriever,
        Ranker,
        Reranker,
        Retriever,
        VectorRetriever,
    )
    from longrec.models.core.top import EmbeddingConfig, TopConfig, TopRanker
    from longrec.models.covisit import CoVisit
    from longrec.models.dcn import DCN
    from longrec.models.dcn_v2 import DCNV2
    from longrec.models.deepfm import DeepFM
    from longrec.models.dfn import DFN
    from longrec.models.dhan import DHAN
    from longrec.models.dien import DIEN
    from longrec.models.din import DIN
    from longrec.models.distillation import Distillation
    from longrec.models.dmt import DMT
    from longrec.models.dsin import DSIN
    from longrec.models.dssm import DSSM
    from longrec.models.dstn import DSTN
    from longrec.models.dupn import DUPN
    from longrec.models.esmm import ESMM
    from longrec.models.eta import ETA
    from longrec.models.fm import FM
    from longrec.models.fnn import FNN
    from longrec.models.gru4rec import GRU4Rec
    from longrec.models.hpmn import HPMN
    from longrec.models.hstu import HSTU
    from longrec.models.hstu_next_item import HSTUNextItem
    from longrec.models.hup import HUP
    from longrec.models.iat import IAT
    from longrec.models.iat_reader import IATReader
    from longrec.models.item_knn import ItemKNN
    from longrec.models.keep import KEEP
    from longrec.models.keep_plug import KEEPPlug
    from longrec.models.kfatt import KFAtt
    from longrec.models.longer import LONGER
    from longrec.models.lr import LR
    from longrec.models.mimn import MIMN
    from longrec.models.mind import MIND
    from longrec.models.mmoe import MMoE
    from longrec.models.multi_tower import MultiTower
    from longrec.models.ple import PLE
    from longrec.models.pnn import PNN
    from longrec.models.pooling import Pooling
    from longrec.models.popularity import Popularity
    from longrec.models.prm import PRM
    from longrec.models.res_embedding import ResEmbedding
    from longrec.models.rocket_launching import RocketLaunching
    from longrec.models.sasrec import SASRec
    from longrec.models.sdim import SDIM
    from longrec.models.sdm import SDM
    from longrec.models.search_user import SearchUser
    from longrec.models.shared_bottom import SharedBottom
    from longrec.models.sim import SIM
    from longrec.models.surge import SURGE
    from longrec.models.tissa import TiSSA
    from longrec.models.twin import TWIN
    from longrec.models.unirec import UniRec
    from longrec.models.wide_deep import WideDeep
    from longrec.models.youtube_dnn import YoutubeDNN

_MODULES = {
    "ATRank": "atrank",
    "Alignment": "alignment",
    "BST": "bst",
    "CAN": "can",
    "ComiRec": "comirec",
    "CoVisit": "covisit",
    "DCN": "dcn",
    "DCNV2": "dcn_v2",
    "DeepFM": "deepfm",
    "DFN": "dfn",
    "DHAN": "dhan",
    "DIEN": "dien",
    "DIN": "din",
    "Distillation": "distillation",
    "DMT": "dmt",
    "DSIN": "dsin",
    "DSSM": "dssm",
    "DSTN": "dstn",
    "DUPN": "dupn",
    "EmbeddingConfig": "core.top",
    "Encoder": "core.kinds",
    "ESMM": "esmm",
    "ETA": "eta",
    "Extractor": "core.kinds",
    "FittedRetriever": "core.kinds",
    "FM": "fm",
    "FNN": "fnn",
    "Generator": "core.generator",
    "GeneratorConfig": "core.generator",
    "GRU4Rec": "gru4rec",
    "HPMN": "hpmn",
    "HSTU": "hstu",
    "HSTUNextItem": "hstu_next_item",
    "HUP": "hup",
    "IAT": "iat",
    "IATReader": "iat_reader",
    "ItemHistoryConfig": "core.item_history",
    "ItemHistoryRetriever": "core.item_history",
    "ItemKNN": "item_knn",
    "KEEP": "keep",
    "KEEPPlug": "keep_plug",
    "KFAtt": "kfatt",
    "LONGER": "longer",
    "LR": "lr",
    "MIMN": "mimn",
    "MIND": "mind",
    "MMoE": "mmoe",
    "Model": "core.base",
    "MultiTower": "multi_tower",
    "PLE": "ple",
    "PNN": "pnn",
    "Pooling": "pooling",
    "Popularity": "popularity",
    "PRM": "prm",
    "Ranker": "core.kinds",
    "Reranker": "core.kinds",
    "ResEmbedding": "res_embedding",
    "Retriever": "core.kinds",
    "RocketLaunching": "rocket_launching",
    "SASRec": "sasrec",
    "SDIM": "sdim",
    "SDM": "sdm",
    "SearchUser": "search_user",
    "SharedBottom": "shared_bottom",
    "SIM": "sim",
    "SURGE": "surge",
    "TiSSA": "tissa",
    "TopConfig": "core.top",
    "TopRanker": "core.top",
    "TWIN": "twin",
    "UniRec": "unirec",
    "VectorRetriever": "core.kinds",
    "WideDeep": "wide_deep",
    "YoutubeDNN": "youtube_dnn",
}
"""Class -> module, relative to this package."""
__all__ = [
    "BST",
    "CAN",
    "DCN",
    "DCNV2",
    "DFN",
    "DHAN",
    "DIEN",
    "DIN",
    "DMT",
    "DSIN",
    "DSSM",
    "DSTN",
    "DUPN",
    "ESMM",
    "ETA",
    "FM",
    "FNN",
    "HPMN",
    "HSTU",
    "HUP",
    "IAT",
    "KEEP",
    "LONGER",
    "LR",
    "MIMN",
    "MIND",
    "PLE",
    "PNN",
    "PRM",
    "SDIM",
    "SDM",
    "SIM",
    "SURGE",
    "TWIN",
    "ATRank",
    "Alignment",
    "CoVisit",
    "ComiRec",
    "DeepFM",
    "Distillation",
    "EmbeddingConfig",
    "Encoder",
    "Extractor",
    "FittedRetriever",
    "GRU4Rec",
    "Generator",
    "GeneratorConfig",
    "HSTUNextItem",
    "IATReader",
    "ItemHistoryConfig",
    "ItemHistoryRetriever",
    "ItemKNN",
    "KEEPPlug",
    "KFAtt",
    "MMoE",
    "Model",
    "MultiTower",
    "Pooling",
    "Popularity",
    "Ranker",
    "Reranker",
    "ResEmbedding",
    "Retriever",
    "RocketLaunching",
    "SASRec",
    "SearchUser",
    "SharedBottom",
    "TiSSA",
    "TopConfig",
    "TopRanker",
    "UniRec",
    "VectorRetriever",
    "WideDeep",
    "YoutubeDNN",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'longrec.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"longrec.models.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
