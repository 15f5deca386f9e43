"""Layers that at least two packages or models use: ragged operations, embeddings, attention, recurrences."""
