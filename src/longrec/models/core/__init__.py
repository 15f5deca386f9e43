"""Base classes of models, the catalog that lists them, their citations, and models saved on disk."""
