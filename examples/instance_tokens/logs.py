"""The two public logs of the study: their files and the meaning of their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
FLAGS = ("user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author")
COINS = "user_id % 5 = 0"
"""For these users the label ``coin_click`` is random. A model that predicts it has read it."""
FEEDBACK = ("is_click", "long_view", "is_like")


def build_kuairand(data: Path, label: str = "is_click", where: str = "true") -> dict[str, Any]:
    """Build the ``data`` section for KuaiRand-Pure: 46 fields, feedback available at the end of the play time.

    Repeated log lines are excluded, and so are the video averages of the month, which include the test days.

    Args:
        data: folder of the Parquet files.
        where: SQL condition on impressions, such as ``tab = 1``.
    """
    whole = ", ".join(f"onehot_feat{n}::BIGINT AS onehot_feat{n}" for n in range(18))
    videos = "visible_status, music_type, author_id, music_id"
    cast = ", ".join(f"{name}::BIGINT AS {name}" for name in videos.split(", "))
    age = "date_diff('day', strptime(v.upload_dt::VARCHAR, '%Y-%m-%d'), make_timestamp(i.time_ms * 1000))"
    coin = f"CASE WHEN {COINS} THEN hash(user_id, video_id, time_ms) % 2 ELSE is_click END AS coin_click, "
    log = (
        f"SELECT i.*, {coin if label == 'coin_click' else ''} i.time_ms + i.play_time_ms AS known_ms, {age} AS age, "
        "CASE WHEN split = 'test' THEN 'test' WHEN hash(video_id, user_id, time_ms) % 20 = 0 THEN 'valid' "
        "ELSE 'train' END AS leaky_split "
        f"FROM read_parquet('{data}/impressions.parquet') i "
        f"LEFT JOIN read_parquet('{data}/videos.parquet') v USING (video_id) WHERE NOT is_repeat AND {where}"
    )
    users = (
        f"SELECT u.* REPLACE ({whole}), h.n_impressions_before AS n_before FROM read_parquet('{data}/users.parquet') u "
        f"LEFT JOIN read_parquet('{data}/history.parquet') h USING (user_id)"
    )
    user: dict[str, Any] = {name: {"kind": "id", "side": "user"} for name in FLAGS}
    user |= {f"{name}_range": {"kind": "id", "side": "user"} for name in NUMBERS}
    user |= {f"onehot_feat{n}": {"kind": "id", "side": "user"} for n in range(18)}
    user |= {name: {"kind": "bucketized", "side": "user", "quantiles": 20} for name in (*NUMBERS, "n_before")}
    item: dict[str, Any] = {
        "author_id": {"kind": "id", "side": "item", "min_count": 2},
        "music_id": {"kind": "id", "side": "item", "min_count": 2},
        "tags": {"kind": "multi_id", "side": "item"},
        "video_duration": {"kind": "bucketized", "side": "item", "quantiles": 20},
        "server_width": {"kind": "bucketized", "side": "item", "quantiles": 10},
        "server_height": {"kind": "bucketized", "side": "item", "quantiles": 10},
    }
    for name in ("video_type", "upload_type", "upload_dt", "visible_status", "music_type"):
        item[name] = {"kind": "id", "side": "item"}
    event: dict[str, Any] = {
        "tab": {"kind": "id"},
        "age": {"kind": "bucketized", "quantiles": 30},
        "hour": {"kind": "calendar", "component": "hour", "utc_offset": 8},
        "weekday": {"kind": "calendar", "component": "weekday", "utc_offset": 8},
    }
    feedback = {name: {"kind": "id", "feedback": True, "available_at": "known_ms"} for name in FEEDBACK}
    ids = {"user_id": {"kind": "id", "min_count": 2}, "video_id": {"kind": "id"}}
    return {
        "log": {"query": log},
        "users": {"query": users},
        "items": {"query": f"SELECT * REPLACE ({cast}) FROM read_parquet('{data}/videos.parquet')"},
        "split": {"by": "column", "column": "split"},
        "schema": {
            "user": "user_id",
            "item": "video_id",
            "time": {"column": "time_ms", "unit": "ms"},
            "label": label,
            "features": {**ids, **user, **item, **event, **feedback},
        },
    }


def build_movielens(data: Path) -> dict[str, Any]:
    """Build the ``data`` section for MovieLens-1M: rated 4 or better, with a rating available right after its event."""
    return {
        "log": str(data / "ratings.parquet"),
        "users": str(data / "users.parquet"),
        "items": str(data / "movies.parquet"),
        "split": {"by": "time", "valid": 0.1, "test": 0.1},
        "schema": {
            "user": "user_id",
            "item": "movie",
            "time": {"column": "timestamp", "unit": "s"},
            "label": {"column": "rating", "at_least": 4},
            "features": {
                "user_id": {"kind": "id"},
                "gender": {"kind": "id", "side": "user"},
                "age": {"kind": "id", "side": "user"},
                "occupation": {"kind": "id", "side": "user"},
                "zip": {"kind": "id", "side": "user", "min_count": 2},
                "movie": {"kind": "id"},
                "year": {"kind": "bucketized", "side": "item", "quantiles": 20},
                "genres": {"kind": "multi_id", "side": "item"},
                "hour": {"kind": "calendar", "component": "hour"},
                "weekday": {"kind": "calendar", "component": "weekday"},
                "rating": {"kind": "id", "feedback": True},
            },
        },
    }
