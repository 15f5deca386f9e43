"""Recommendation pipeline: its config, and stages that map candidates to candidates."""
