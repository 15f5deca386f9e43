"""LongRec's DIEN as ``peers/deepctr_dien.py`` has it: 32 hidden units, attention 64-16, AUGRU, no auxiliary loss."""

from __future__ import annotations

import longrec_din

MODEL = {
    "name": "dien",
    "embedding_dim": 16,
    "hidden": 32,
    "attention": "mlp",
    "attention_units": [64, 16],
    "aux_weight": 0.0,
    "mlp": [200, 80],
    "mlp_activation": "relu",
    "batch_norm": False,
}

if __name__ == "__main__":
    longrec_din.main(MODEL)
