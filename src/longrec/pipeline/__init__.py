"""Stages from candidates to candidates."""
