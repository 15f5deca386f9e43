"""Papers, one a file. The folder is the registry; ``models/catalogue.py`` lists it without importing torch."""
