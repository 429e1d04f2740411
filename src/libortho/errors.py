"""The exceptions of libortho: one tree, so that ``except LibOrthoError`` catches them all."""

from __future__ import annotations


class LibOrthoError(Exception):
    """Base of every error that libortho raises on purpose."""


class ConfigError(LibOrthoError):
    """An option, or a combination of options, that cannot be honoured."""


class CheckpointError(LibOrthoError):
    """A checkpoint that is missing, incomplete or of an unsupported shape."""


class FormatError(LibOrthoError):
    """A file on disk that does not follow the format."""


class PairMismatch(FormatError):
    """Two artefacts that do not belong together, such as a stream and another base."""


class CorruptStream(FormatError):
    """A stream whose bytes differ from its manifest or break the CSR rules."""


class UnsupportedLayer(LibOrthoError):
    """A layer that the requested conversion cannot represent."""


class BackendUnavailable(LibOrthoError):
    """A backend was required that cannot run here."""


class AlphaError(LibOrthoError):
    """A value of alpha that is out of range, ambiguous or names an absent stream."""


class NumericsError(LibOrthoError):
    """NaN or Inf where finite numbers are required."""


class VoidRun(LibOrthoError):
    """An experiment whose preconditions failed: it shows nothing, neither way."""
