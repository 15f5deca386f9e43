"""The words every room speaks: schema, encoders, fitted tables, batches."""
