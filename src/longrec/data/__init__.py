"""Logs of events: preparation, histories, splits, batches and synthetic datasets."""
