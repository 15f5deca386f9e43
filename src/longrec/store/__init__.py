"""Stores of events and vectors by key and time. A read returns only what lies strictly before a given timestamp."""
