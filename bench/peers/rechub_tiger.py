"""Runner of torch-rechub's TIGER: its model and trie, generated from as its example ``run_tiger_amazon_books.py`` does.

The argument is a file of ``../generation.py``: paths of items and histories. A line of the input names a way, and the
line of output is its CPU milliseconds per user.

TIGER is the T5 of ``transformers`` behind ``generate`` with ``prefix_allowed_tokens_fn``. Fixed differences: a history
is one text, in which each token of an event's path is a position; a path ends with a token of its own, which is a step
more; all steps share one vocabulary. Left out, in its favor: text before and after generation, mapping of paths to
items, and the 32,100 word pieces that the example has in its vocabulary.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch_rechub.models.generative.tiger import TIGERModel
from torch_rechub.utils.data import Trie
from transformers import T5Config

START, END = 0, 1
FIRST = 3
"""Number of the first token of a path, after those of padding, the end and unknown words."""
DEFAULT_EVENTS = 20
"""``max_his_len`` of the example."""


class Peer:
    """A model with random weights and the trie of the items."""

    def __init__(self, data: dict[str, np.ndarray]) -> None:
        sizes = data["sizes"]
        self.paths = data["paths"] + (FIRST + np.cumsum(sizes) - sizes)
        self.data, self.width, self.count = data, int(data["width"]), int(data["count"])
        units, layers, heads = int(data["units"]), int(data["layers"]), int(data["heads"])
        config = T5Config(
            vocab_size=FIRST + int(sizes.sum()),
            d_model=units,
            d_kv=units // heads,
            d_ff=4 * units,
            num_layers=layers,
            num_decoder_layers=layers,
            num_heads=heads,
            decoder_start_token_id=START,
        )
        torch.manual_seed(0)
        self.model = TIGERModel(config).eval()
        self.trie = Trie([[START, *path, END] for path in self.paths.tolist()])
        self.allowed = self.trie.def_prefix_allowed_tokens_fn(self.trie)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return the tokens of histories of items, ``[U, N]``."""
        tokens = self.paths[rows].reshape(len(rows), -1)
        return torch.from_numpy(np.concatenate([tokens, np.full((len(rows), 1), END)], 1))

    def generate(self, rows: np.ndarray) -> Any:
        """Generate for users with histories of items, ``[U, N]``."""
        inputs = self.read(rows)
        with torch.no_grad():
            return self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=10,
                prefix_allowed_tokens_fn=self.allowed,
                num_beams=self.width,
                num_return_sequences=self.count,
                output_scores=True,
                return_dict_in_generate=True,
                early_stopping=True,
            )

    def encode(self, rows: np.ndarray) -> None:
        """Run the encoder alone, which ``generate`` begins with."""
        with torch.no_grad():
            self.model.encoder(input_ids=self.read(rows))

    def check(self) -> float:
        """Check that lists hold paths of items, none twice, and return how far scores are from teacher forcing."""
        worst, real = 0.0, {tuple(path) for path in self.paths.tolist()}
        for rows in self.data["singles"]:
            out = self.generate(rows[None])
            lists = [tuple(path) for path in out.sequences[:, 1:-1].tolist()]
            assert len(set(lists)) == len(lists) == self.count, "a path twice"
            assert set(lists) <= real, "a path of no item"
            inputs, target = self.read(rows[None]).expand(self.count, -1), out.sequences[:, 1:]
            with torch.no_grad():
                logits = self.model(input_ids=inputs, decoder_input_ids=out.sequences[:, :-1], use_cache=False).logits
            own = logits.log_softmax(2).gather(2, target.unsqueeze(2)).squeeze(2).mean(1)
            worst = max(worst, float((own - out.sequences_scores).abs().max()) * target.shape[1])
        assert worst < 1e-4, f"scores are {worst} from teacher forcing"
        return worst

    def run(self, way: str) -> int:
        """Run a way, and return its number of users."""
        events = DEFAULT_EVENTS if way.startswith("short") else self.data["batch"].shape[1]
        batch, singles = self.data["batch"][:, -events:], self.data["singles"][:, -events:]
        if way.endswith("together"):
            self.generate(batch)
            return len(batch)
        for rows in singles:
            (self.encode if way == "encoder" else self.generate)(rows[None])
        return len(singles)


def main() -> None:
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as data:
        peer = Peer(dict(data))
    error = peer.check()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch-rechub", "transformers", "torch"))
    print("RESULT " + json.dumps({"error": error, "versions": versions}), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        users = peer.run(line.strip())
        print("RESULT " + json.dumps(1e3 * (time.process_time() - began) / users), flush=True)


if __name__ == "__main__":
    main()
