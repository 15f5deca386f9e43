"""Schema, encoders, entity tables and batches: the data types that all packages share."""
