"""Ranking pipeline: stages that map candidates to candidates."""
