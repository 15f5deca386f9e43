"""Papers, one a file."""
