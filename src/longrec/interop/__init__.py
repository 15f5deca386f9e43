"""Reads other tools' formats into ours."""
