"""LongRec's SIM, ETA, SDIM and TWIN with the sizes that ``peers/fuxictr_long.py`` gives to FuxiCTR's.

Structure differs where the papers leave it open: SIM's short-term branch is DIEN's two recurrences (FuxiCTR: an
attention), over as many events, and its auxiliary network does not read the user's fields. SDIM normalizes the sums of
buckets. TWIN has no short-term branch (FuxiCTR: an attention to the newest 49 events).
"""

from __future__ import annotations

import clock
import longrec_din

SHARED = {"embedding_dim": 16, "mlp": [64, 32], "mlp_activation": "relu", "batch_norm": False, "heads": 2}
MODELS = {
    "sim": {"select": 50, "search_width": 64, "head_width": 32, "aux": [64, 32], "short": 50},
    "eta": {"selected": 50, "recent": 50, "bits": 32, "width": 64},
    "sdim": {"groups": 2, "bits": 4, "recent": 50, "width": 64},
    "twin": {"select": 50, "head_width": 32, "output": 32},
}

if __name__ == "__main__":
    options = clock.parse_arguments()
    model = options.model or "sim"  # prepared data serve all
    longrec_din.main({"name": model, **SHARED, **MODELS[model]}, options)
