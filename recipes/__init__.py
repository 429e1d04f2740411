"""Programs that make what the package ships; run from the repository root."""
