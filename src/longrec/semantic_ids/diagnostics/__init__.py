"""Diagnostics of semantic IDs: functions over arrays of codes, codebooks and vectors, findings, and an HTML page."""
