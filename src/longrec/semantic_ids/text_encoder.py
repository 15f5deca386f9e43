"""Vectors of text: TF-IDF of words, and the leading directions of a truncated SVD (latent semantic analysis).

    v = normalize(tfidf(text) @ components^T)

It needs scikit-learn (``pip install 'longrec[text]'``). Terms, their weights and the directions are stored beside the
codes, so that new items get vectors of the same space.

Shapes: N texts, V terms, X width of a vector.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from longrec.errors import DataError, ResourceError

TERMS, WEIGHTS = "text_terms.json", "text_encoder.safetensors"
"""Files of a folder."""
_MOST_TERMS = 50_000


@dataclass(frozen=True)
class TextEncoder:
    """A fitted encoder of text.

    Attributes:
        terms: the V terms.
        weights: inverse document frequency of each term, float32 ``[V]``.
        components: float32 ``[X, V]``.
    """

    terms: tuple[str, ...]
    weights: Float32[NDArray[np.float32], " V"]
    components: Float32[NDArray[np.float32], "X V"]

    @classmethod
    def fit(cls, texts: Sequence[str], width: int, seed: int, where: str) -> TextEncoder:
        """Fit an encoder to the texts of all items.

        Raises:
            DataError: texts with too few different words.
            ResourceError: scikit-learn is not installed.
        """
        vectorizer = _build_vectorizer(max_features=_MOST_TERMS)
        try:
            counts = vectorizer.fit_transform(texts)
        except ValueError as error:  # texts without a word
            raise DataError(where, f"texts without words ({error})", "a text of some words for each item") from None
        if counts.shape[1] <= width or counts.shape[0] <= width:
            what = f"{counts.shape[1]:,} different words in {counts.shape[0]:,} texts"
            do = "use a smaller vectors.width, or name more columns of text"
            raise DataError(where, what, f"more of both than the width {width}", do)
        svd = _import("sklearn.decomposition").TruncatedSVD(width, random_state=seed)
        svd.fit(counts)
        terms = tuple(map(str, vectorizer.get_feature_names_out()))
        return cls(terms, vectorizer.idf_.astype(np.float32), svd.components_.astype(np.float32))

    def encode(self, texts: Sequence[str]) -> Float32[NDArray[np.float32], "N X"]:
        """Return the vectors of texts, each of length 1. A text without any of the terms has the vector zero."""
        vectorizer = _build_vectorizer(vocabulary=list(self.terms))
        vectorizer.idf_ = self.weights.astype(np.float64)
        vectors = (vectorizer.transform(texts) @ self.components.T.astype(np.float64)).astype(np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        result: NDArray[np.float32] = vectors / np.where(length > 0, length, 1)
        return result

    def write(self, folder: Path) -> None:
        """Write the encoder into a folder."""
        save_file({"weights": self.weights, "components": np.ascontiguousarray(self.components)}, folder / WEIGHTS)
        (folder / TERMS).write_text(json.dumps(self.terms, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> TextEncoder | None:
        """Open the encoder of a folder. None if it has none."""
        if not (folder / TERMS).exists():
            return None
        arrays = load_file(folder / WEIGHTS)
        terms = json.loads((folder / TERMS).read_text(encoding="utf-8"))
        return cls(tuple(terms), arrays["weights"], arrays["components"])


def _build_vectorizer(**settings: Any) -> Any:
    text = _import("sklearn.feature_extraction.text")
    return text.TfidfVectorizer(sublinear_tf=True, strip_accents="unicode", **settings)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ResourceError(
            "vectors.text", "scikit-learn is not installed", "the extra text", "pip install 'longrec[text]'"
        ) from None
