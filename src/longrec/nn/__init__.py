"""Layers with two users or more: ragged operations, embeddings, sparse optimisers."""
