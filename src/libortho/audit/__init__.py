"""The audit: what a model still knows of private data, by every attack, in every state."""

from libortho.audit.run import AUDIT, REDUCED, REDUCED_ROWS, audit

__all__ = ["AUDIT", "REDUCED", "REDUCED_ROWS", "audit"]
