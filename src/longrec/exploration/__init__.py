"""Exploration: scores that rank uncertain candidates higher, over any trained ranker, beside the plain probability."""
