"""Records turned into one self-contained HTML page."""

from libortho.report.page import render

__all__ = ["render"]
