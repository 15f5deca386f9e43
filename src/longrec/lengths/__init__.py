"""Quality and cost of models by the length of the histories that they read: ``longrec bench lengths``."""
