# %% [markdown]
# # LongRec in a notebook
#
# From a data frame to a trained, compared and saved model. `make_notebook.py` writes this notebook from `tour.py` and
# executes it.

# %%
import numpy as np
import pandas as pd
import torch

import longrec as lr

# %% [markdown]
# ## A log
#
# Readers see articles. Every reader likes one topic, and another one after two months. Only the recent history shows
# which.

# %%
random = np.random.default_rng(0)
EVENTS, READERS, ARTICLES, TOPICS = 24_000, 240, 120, 5
shown_at = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.sort(random.integers(0, 120 * 86_400, EVENTS)), unit="s")
reader, article = random.integers(0, READERS, EVENTS), random.integers(0, ARTICLES, EVENTS)
taste = random.integers(0, TOPICS, (READERS, 2))[reader, (shown_at.day_of_year - 1) // 60]
chance = np.where(taste == article % TOPICS, 0.7, 0.08)

events = pd.DataFrame(
    {
        "reader": reader,
        "article": article,
        "shown_at": shown_at,
        "read": (random.random(EVENTS) < chance).astype(int),
    }
)
articles = pd.DataFrame(
    {
        "article": range(ARTICLES),
        "topic": [f"topic-{n % TOPICS}" for n in range(ARTICLES)],
        "since": pd.Timestamp("2025-12-01"),
    }
)
events.head(3)

# %% [markdown]
# ## Schema and preparation
#
# The history holds the articles that were read, strictly before each row. `as_of` names the time from which a row of
# the table is valid.

# %%
schema = lr.Schema(
    user="reader",
    item="article",
    time="shown_at",
    label="read",
    features={"reader": "id", "article": "id", "topic": {"kind": "id", "side": "item"}},
    histories={"was_read": {"features": ["article", "topic"], "where": {"read": 1}, "max_length": 20}},
)
log = lr.prepare(
    events,
    items=lr.Source(frame=articles, as_of="since"),
    schema=schema,
    split={"by": "time", "valid_days": 10, "test_days": 10},
)
log

# %% [markdown]
# ## Two models, one with the history

# %%
settings = {"embedding_dim": 8, "mlp": (32, 16)}
fit = {"lr": 1e-2, "batch_size": 256, "quiet": True}
deepfm = lr.fit(lr.models.DeepFM(log.fields(), **settings), log, name="deepfm", **fit)
din = lr.fit(lr.models.DIN(log.fields(), attention=(16,), **settings), log, name="din", **fit)
din

# %%
lr.compare([deepfm, din])

# %%
din.history.to_pandas().query("split == 'valid'")[["step", "epoch", "auc", "log_loss"]]

# %% [markdown]
# ## A model of one's own, from this notebook
#
# The mean of the vectors of the last articles that were read, and its inner product with the vector of the topic.

# %%
from longrec.nn.embedding import Embeddings
from longrec.nn.segments import Segments


class TopicMean(lr.models.Ranker):
    """The inner product of the topic and the mean topic of the history, plus a bias."""

    class Config(lr.models.EmbeddingConfig):
        scale: float = 4.0

    reads_history = True

    def __init__(self, config, fields):
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=0.3)
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        embedded = self.embed(batch)
        topics = embedded.histories["was_read"]["topic"]
        mean = Segments.of(batch, "was_read").pool(topics, "mean")
        return self.config.scale * (embedded.features["topic"] * mean).sum(1) + self.bias

    def output_biases(self):
        return [self.bias]


own = lr.fit(TopicMean(log.fields(), embedding_dim=8), log, name="topic-mean", **fit)
lr.load_model("runs/topic-mean", TopicMean)
own

# %% [markdown]
# ## A loop of one's own

# %%
model = lr.models.DIN(log.fields(), attention=(16,), **settings)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
for batch in log.batches("train", batch_size=256, seed=0):
    loss = model.loss(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

with torch.inference_mode():
    scores = torch.cat([torch.sigmoid(model.eval()(batch)) for batch in log.batches("test")])
print(f"AUC on test after one pass: {lr.metrics.auc(log.labels('test'), scores.numpy()):.3f}")

# %% [markdown]
# ## A metric of one's own, with an interval


# %%
def reads_in_top_tenth(label, score, user):
    """Share of reads among the tenth of the rows with the highest scores."""
    return label[np.argsort(-score)[: len(score) // 10]].mean()


lr.evaluate(din, metrics=[reads_in_top_tenth]).to_pandas().tail(1)
