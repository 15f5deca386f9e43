"""Index of item vectors: the items with the largest inner products, exactly or by inverted lists, with filters."""
