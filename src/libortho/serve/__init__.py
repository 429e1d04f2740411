"""Serving with vLLM: the gate inside a stock engine, one α per request.

Beside vLLM libortho registers :func:`libortho.serve.plugin.register` as a vLLM plugin.
From then on vLLM serves a base directory with the streams under ``ortho/`` attached and closed;
a request opens them with ``SamplingParams(extra_args={"ortho_alpha": …})``, over HTTP with
``"vllm_xargs": {"ortho_alpha": …}``: a number, or a string such as ``tenant-7=1,repair=1``.

Two environment variables choose what an engine attaches:

* ``LIBORTHO_STREAMS=NAME,NAME``: these streams instead of all that lie under ``ortho/``.
* ``LIBORTHO_STRICT=1``: none. No file under ``ortho/`` is opened.

docs/serving.md has the limits, the tiers and the sizes. Only ``attached``, ``bodies``,
``requests``, ``rows`` and ``shards`` can be imported without vLLM.
"""
