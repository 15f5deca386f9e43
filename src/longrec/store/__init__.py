"""Stores of events and vectors by key and time. A read returns only entries strictly before a given timestamp."""
