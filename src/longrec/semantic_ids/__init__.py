"""Semantic IDs: item vectors become tuples of codes, which a model can generate.

A tokenizer (``tokenizer.py``, one file per method) learns codebooks from item vectors and assigns codes to items. A
folder of semantic IDs (``stored.py``) holds the codes of all items and the tokenizer, which encodes new items.
"""
