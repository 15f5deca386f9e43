"""The methods of tokenizers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrec.config import parse
from longrec.errors import ConfigError, UnknownName
from longrec.semantic_ids.drq import DRQ
from longrec.semantic_ids.rq_kmeans import RQKMeans
from longrec.semantic_ids.rq_vae import RQVAE
from longrec.semantic_ids.tokenizer import Tokenizer

METHODS: Mapping[str, type[Tokenizer]] = {cls.name: cls for cls in (RQKMeans, RQVAE, DRQ)}


def build_tokenizer(method: str | Mapping[str, Any], where: str = "tokenizer", prefix: str = "method") -> Tokenizer:
    """Return a tokenizer that is not fitted yet.

    Args:
        method: name of a method, or a mapping of ``name`` and its settings.
        where: the file that errors name.
        prefix: path of the section in it.

    Raises:
        UnknownName: no method of that name.
        ConfigError: a setting that the method does not have, or a value that it does not accept.
    """
    content = {"name": method} if isinstance(method, str) else dict(method)
    name = content.pop("name", None)
    if name is None:
        raise ConfigError(where, [f"{prefix}.name: missing; one of {', '.join(METHODS)}"])
    if name not in METHODS:
        raise UnknownName("tokenizer", str(name), METHODS)
    cls = METHODS[name]
    return cls(parse(cls.Settings, content, where, prefix))
