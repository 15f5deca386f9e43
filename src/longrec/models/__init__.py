"""Models, one paper per file. The folder is the registry. ``models/core`` holds what they share."""
