"""Events with columns of the candidate: the context contains them, and tokens and histories read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_shop

from longrec.data.gather import gather
from longrec.errors import RequestError
from longrec.serve.client import LocalClient
from longrec.serve.knowledge_features import key_number
from longrec.serve.service import Service
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenStore
from longrec.training.token_source import open_source

SCHEMA: dict[str, Any] = {
    **token_shop.SCHEMA,
    "features": {
        **token_shop.SCHEMA["features"],
        "price": {"kind": "bucketized", "edges": [1, 2, 3], "side": "candidate"},
        "thing": {"kind": "cross", "features": ["place", "item_id"], "hash": 30},
    },
    "histories": {"seen": {"features": ["item_id", "place", "price", "thing", "stars", "time_gap"], "max_length": 8}},
}


@pytest.mark.slow
def test_a_token_is_the_one_that_training_would_have_written(tmp_path: Path) -> None:
    shop = token_shop._make(token_shop.events(), SCHEMA, token_shop.SOURCE, token_shop.POOLING, token_shop.OF)
    source, log, columns = open_source(shop.tokens / "source"), shop.log, token_shop.events()
    with TokenStore.open(shop.tokens) as store:
        written = {int(i): (int(v), vector) for _, t in store.scan()
                   for i, v, vector in zip(t.instance, t.version, t.vectors)}  # fmt: skip
    indices = {key: n for n, key in enumerate(zip(columns["user_id"], columns["item_id"], columns["at"]))}
    settings, count = Settings(events=str(shop.source), state=str(tmp_path / "state")), 0
    with LocalClient(shop.bundle, settings) as one:
        for row in range(len(log) - 1, 0, -17):
            user, item, at = log.user(np.array([row]))[0], log.events.columns["item"][row], int(log.events.times[row])
            key, thing = log.users.key(int(user)), log.items.key(int(item))
            index = indices[key, thing, at]
            context = {name: columns[name][index] for name in ("place", "price")}
            response = one.event(key, thing, at, context=context)
            version, vector = written.get(response.instance, (-1, None))
            if version != source.version:
                continue
            stored = [t for u, t in next(iter(one._service._state.stores.values())).scan() if u == key_number(key)][0]  # type: ignore[attr-defined]
            assert np.abs(stored.vectors[stored.instance == response.instance][0] - vector).max() < 4e-3
            count += 1
        assert count > 3
        live = one._service._state.live[one._service.bundle.digest]  # type: ignore[attr-defined]
        own = live.last(key_number(key), int(user), at + 1, 1, None, ["item", "price", "thing"])
        features = gather(log, np.array([row])).features
        assert [int(own.columns[name][-1]) for name in ("price", "thing")] == [
            int(features[n][0]) for n in ("price", "thing")
        ]
        with pytest.raises(RequestError, match="context: no 'price'"):
            one.event(key, thing, at, context={"place": "top"})
    assert Service(shop.bundle).served.encoder.candidate_context == {"price": ["price"]}
