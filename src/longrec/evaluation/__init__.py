"""Evaluation of pipelines of several models on the rows of a prepared log."""
