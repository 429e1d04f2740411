"""The recipe of the embedded reference model: ``python -m recipes.reference --help``."""
