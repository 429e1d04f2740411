"""α of a step's tokens, set by both of vLLM's model runners before each forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from libortho.serve.config import OrthoConfig, ortho_config
from libortho.serve.requests import Alphas, request_alphas

Wrapped = Callable[..., Any]


def hook_v1() -> None:
    """Wrap the V1 runner: GPU and CPU share this class."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    GPUModelRunner.initialize_kv_cache = _after_loading(GPUModelRunner.initialize_kv_cache)
    GPUModelRunner._prepare_inputs = _filling(GPUModelRunner._prepare_inputs)
    GPUModelRunner._model_forward = _clearing(GPUModelRunner._model_forward)


def hook_v2() -> None:
    """Have the V2 runner keep its state in a subclass of whatever class it would use."""
    from vllm.v1.worker.gpu import model_states

    original = model_states.resolve_model_state_cls

    @functools.wraps(original)
    def resolve(vllm_config: Any, model: Any) -> type:
        state: type = original(vllm_config, model)
        return state if ortho_config(vllm_config) is None else _state_class(state)

    model_states.resolve_model_state_cls = resolve


def _after_loading(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def initialize_kv_cache(runner: Any, *args: Any, **kwargs: Any) -> Any:
        config = ortho_config(runner.vllm_config)
        if config is not None:
            config.check_complete()
        return original(runner, *args, **kwargs)

    return initialize_kv_cache


def _filling(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def _prepare_inputs(
        runner: Any, scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # The original may still move requests; after it their order is final.
        prepared = original(runner, scheduler_output, num_scheduled_tokens, *args, **kwargs)
        config = ortho_config(runner.vllm_config)
        if config is not None:
            ids = runner.input_batch.req_ids[: len(num_scheduled_tokens)]
            states = [runner.requests[request] for request in ids]
            _fill(config, [_of_state(state, config) for state in states], num_scheduled_tokens)
        return prepared

    return _prepare_inputs


def _clearing(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def _model_forward(runner: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(runner, *args, **kwargs)
        finally:
            # Whatever else runs the model, such as a dummy run, is not a request.
            config = ortho_config(runner.vllm_config)
            if config is not None and config.rows is not None:
                config.rows.clear()

    return _model_forward


def _of_state(state: Any, config: OrthoConfig) -> Alphas:
    """α of a request of the V1 runner: fixed when it is first seen."""
    alphas: Alphas | None = getattr(state, "libortho_alphas", None)
    if alphas is None:
        alphas = _of_params(state.sampling_params, config)
        state.libortho_alphas = alphas
    return alphas


def _of_params(params: Any, config: OrthoConfig) -> Alphas:
    return request_alphas(params.extra_args if params is not None else None, config.attached)


def _fill(config: OrthoConfig, alphas: Sequence[Alphas], tokens: Sequence[int]) -> None:
    if config.rows is None:
        raise RuntimeError("no stream of this engine was loaded; see its log")
    config.rows.fill(alphas, tokens)


@functools.cache
def _state_class(state: type[Any]) -> type:
    """``state`` with α added: by request id, so that dummy batches are closed."""

    class OrthoModelState(state):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(vllm_config, *args, **kwargs)
            config = ortho_config(vllm_config)
            assert config is not None
            config.check_complete()
            self._libortho_config = config
            self._libortho_alphas: dict[str, Alphas] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            alphas = _of_params(new_req_data.sampling_params, self._libortho_config)
            self._libortho_alphas[new_req_data.req_id] = alphas

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            self._libortho_alphas.pop(req_id, None)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            prepared = super().prepare_inputs(input_batch, req_states)
            config = self._libortho_config
            closed = (0.0,) * len(config.attached.streams)
            count = input_batch.num_reqs
            alphas = [self._libortho_alphas.get(r, closed) for r in input_batch.req_ids[:count]]
            _fill(config, alphas, input_batch.num_scheduled_tokens[:count])
            return prepared

    return OrthoModelState
