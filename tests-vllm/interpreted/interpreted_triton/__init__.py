"""Tells vLLM that Triton has a CPU backend, so that its V2 model runner starts without a GPU.

Nothing is compiled by it: the tests set ``TRITON_INTERPRET=1``, under which every kernel is run by
Triton's own interpreter. Found through the dist-info folder beside this one, only by engines whose
``PYTHONPATH`` names the folder of both.
"""
