"""CUDA kernels of others beside libortho's; README.md says how to build their libraries."""
