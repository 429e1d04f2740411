"""Where requests enter: what the engine cannot honour is refused, and prefixes are kept apart."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError

from libortho.errors import AlphaError
from libortho.serve.bodies import problem
from libortho.serve.config import attached_to
from libortho.serve.requests import FIELD, request_alphas, salted

Wrapped = Callable[..., Any]


def hook_front() -> None:
    """Wrap the request check of the API process, and what reads the fields of its endpoints."""
    from vllm.entrypoints.launchers import app
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.v1.engine.input_processor import InputProcessor

    app.init_entrypoints_middleware = _reading_bodies(app.init_entrypoints_middleware)
    InputProcessor.process_inputs = _checking(InputProcessor.process_inputs)
    for request in (CompletionRequest, ChatCompletionRequest):
        request.to_beam_search_params = _without_beams(request.to_beam_search_params)
    for request in (CompletionRequest, ChatCompletionRequest, ResponsesRequest):
        request.to_sampling_params = _in_its_place(request.to_sampling_params)


class BodyCheck:
    """ASGI middleware: answers 400 where α stands in a place that the route does not read."""

    def __init__(self, app: Wrapped) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Wrapped, send: Wrapped) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parts, message = [], {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
        body = b"".join(parts)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        said = problem(path, scope["query_string"], body)
        if said is not None:
            error = VLLMValidationError(said, parameter=FIELD)
            answer = JSONResponse(create_error_response(error).model_dump(), HTTPStatus.BAD_REQUEST)
            await answer(scope, receive, send)
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


def hook_core() -> None:
    """Salt every request's prefix hashes in the engine core, before the first is computed."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.preprocess_add_request = _salting(EngineCore.preprocess_add_request)


def _reading_bodies(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def init_entrypoints_middleware(args: Any, app: Any, *more: Any, **options: Any) -> Any:
        # The innermost: keys are checked before it, and a gateway's middleware has had its say.
        app.add_middleware(BodyCheck)
        return original(args, app, *more, **options)

    return init_entrypoints_middleware


def _checking(original: Wrapped) -> Wrapped:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        attached = attached_to(self.vllm_config)
        try:
            request_alphas(getattr(given["params"], "extra_args", None), attached)
            if given.get("resumable") and attached.streams:
                raise AlphaError(
                    "a resumable request may change its parameters midway, and alpha holds to a "
                    "request's end; send the turns as requests of their own"
                )
        except AlphaError as error:
            raise VLLMValidationError(str(error), parameter=FIELD) from error
        return original(self, *args, **kwargs)

    return process_inputs


def _salting(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        attached = attached_to(self.vllm_config)
        if attached.streams:
            params = request.sampling_params
            alphas = request_alphas(params.extra_args if params else None, attached)
            if request.resumable:
                raise AlphaError("resumable requests are refused where streams are attached")
            request.cache_salt = salted(request.cache_salt, alphas, attached)
        return original(self, request)

    return preprocess_add_request


def _without_beams(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def to_beam_search_params(request: Any, *args: Any, **kwargs: Any) -> Any:
        _check_place(request)
        if FIELD in (request.vllm_xargs or {}):
            raise VLLMValidationError(
                f"{FIELD} with beam search: vLLM drops vllm_xargs there, and the answer would be "
                "the base's; sample, or search with libortho.load",
                parameter=FIELD,
            )
        return original(request, *args, **kwargs)

    return to_beam_search_params


def _in_its_place(original: Wrapped) -> Wrapped:
    @functools.wraps(original)
    def to_sampling_params(request: Any, *args: Any, **kwargs: Any) -> Any:
        _check_place(request)
        return original(request, *args, **kwargs)

    return to_sampling_params


def _check_place(request: Any) -> None:
    """vLLM ignores fields that it does not know, with a line in its own log only."""
    if FIELD in (request.model_extra or {}):
        raise VLLMValidationError(
            f"{FIELD} stands beside the request's own fields, where vLLM ignores it; write "
            f'"vllm_xargs": {{"{FIELD}": …}}',
            parameter=FIELD,
        )
