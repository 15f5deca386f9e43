"""Audit of an interaction log for the faults that make published numbers of recommendation wrong."""
