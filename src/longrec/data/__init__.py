"""What happened: the log, its histories, splits, loading, small worlds."""
