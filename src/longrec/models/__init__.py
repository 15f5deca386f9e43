"""Models, one paper per file. The folder is the registry. ``models/core`` contains shared code."""
