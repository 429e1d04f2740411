"""Timing the op beside its peers: paired runs, weights rotated so that no cache holds them."""

from libortho.bench.kernels import Measurement, measure, quick
from libortho.bench.peers import PEERS
from libortho.bench.results import Benchmark, write

__all__ = ["PEERS", "Benchmark", "Measurement", "measure", "quick", "write"]
