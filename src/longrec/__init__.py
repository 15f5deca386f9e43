"""LongRec."""
