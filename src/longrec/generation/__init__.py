"""Generation of items token by token: a trie of their paths, beam search, and exact scores beside it."""
