"""The OpenAI-compatible server: alpha in ``vllm_xargs``, and what is answered with 400."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engines import OPTIONS, environment

from libortho.serve.bodies import PLACES

SECONDS_TO_START = 240
TOKENS = 8


class Server:
    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        flags = [
            flag
            for name, value in OPTIONS.items()
            for flag in [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        ]
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        flags += ["--model", str(model), "--served-model-name", "served"]
        flags += ["--host", "127.0.0.1", "--port", str(self.port), "--enable-prompt-tokens-details"]
        flags += ["--chat-template", "{{ messages[0].content }}", "--enable-scale-out"]
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *flags],
                env=environment(True, VLLM_ENABLE_V1_MULTIPROCESSING="1"),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while self.status("/health") != 200:
            assert self.process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return int(reply.status)
        except OSError:
            return 0

    def post(self, path: str = "/v1/completions", **body: Any) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps({"model": "served", "temperature": 0, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        return answered(request)

    def posting_routes(self) -> list[str]:
        """Every route of the server that takes a body."""
        _, schema = answered(urllib.request.Request(f"http://127.0.0.1:{self.port}/openapi.json"))
        return [path for path, methods in schema["paths"].items() if "post" in methods]

    def complete(self, prompt: list[int], alpha: Any = None) -> dict[str, Any]:
        xargs = {} if alpha is None else {"vllm_xargs": {"ortho_alpha": alpha}}
        status, reply = self.post(
            prompt=prompt,
            max_tokens=TOKENS,
            ignore_eos=True,
            logprobs=1,
            return_token_ids=True,
            **xargs,
        )
        assert status == 200, reply
        choice = reply["choices"][0]
        details = reply["usage"].get("prompt_tokens_details") or {}
        return {
            "tokens": choice["token_ids"],
            "log_probs": choice["logprobs"]["token_logprobs"],
            "cached": details.get("cached_tokens") or 0,
        }

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def answered(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


@pytest.fixture(scope="module")
def server(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(two, tmp_path_factory.mktemp("server") / "server.log")
    yield server
    server.stop()


def test_requests_at_once_each_get_their_own_alpha(
    server: Server, reference: Callable[[Path], Any], two: Path, prompts, figures
) -> None:
    alphas = [None, 1, 0.5, 0.25, 0, "private=1", "repair=1", "private=0.5,repair=1"]
    with ThreadPoolExecutor(len(alphas)) as pool:
        results = list(pool.map(server.complete, prompts, alphas))
    agreement = reference(two).compare(prompts, alphas, results)
    figures["http"] = agreement.figures()
    assert agreement.holds, agreement


def test_prefixes_are_shared_under_one_alpha_only(server: Server, prompts) -> None:
    text = prompts[5][:69:-1] + prompts[3][:40]
    sequence = [1, 1, 0, "private=1,repair=1", "private=1", None]
    assert [server.complete(text, alpha)["cached"] for alpha in sequence] == [0, 64, 0, 64, 0, 64]


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (1.5, "found 1.5"),
        (-1, "found -1"),
        ("warm", "expected a number"),
        ("ghost=1", "not attached: ghost"),
        ([1, 0], "one value"),
        ({"private": 1}, "vllm_xargs"),
        (True, "found true"),
    ],
)
def test_alpha_that_cannot_be_honoured_is_400(server: Server, alpha: Any, said: str) -> None:
    status, reply = server.post(prompt=[1, 2], max_tokens=1, vllm_xargs={"ortho_alpha": alpha})
    assert (status, said in json.dumps(reply)) == (400, True), reply


CHAT = [{"role": "user", "content": "one two three four five"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": CHAT[0]["content"], "max_tokens": TOKENS},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": TOKENS},
    "/v1/responses": {"input": CHAT[0]["content"], "max_output_tokens": TOKENS},
    "/v1/messages": {"messages": CHAT, "max_tokens": TOKENS},
    "/invocations": {"prompt": CHAT[0]["content"], "max_tokens": TOKENS},
    "/inference/v1/generate": {
        "token_ids": [11, 12, 13, 14, 15],
        "sampling_params": {"temperature": 0, "max_tokens": TOKENS},
    },
}
RENDERING = {f"{path}/render": body for path, body in ASKED.items() if path.startswith("/v1/")}
"""What these routes answer is a request for ``/inference/v1/generate``."""


def said(reply: Any) -> str:
    """What was generated, or the request that was rendered, in any route's answer."""
    if isinstance(reply, list):
        return said(reply[0])
    if "sampling_params" in reply:
        return json.dumps(reply["sampling_params"].get("extra_args"))
    (part, *_) = reply.get("choices") or reply.get("output") or [reply]
    return json.dumps(part.get("message") or part.get("content") or part.get("text") or part)


def with_alpha(path: str, body: dict[str, Any], alpha: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(body))
    inside = changed
    for name in PLACES[path]:
        inside = inside.setdefault(name, {})
    inside["ortho_alpha"] = alpha
    return changed


@pytest.mark.parametrize("path", PLACES)
def test_routes_that_read_alpha_obey_it(server: Server, path: str) -> None:
    body = {**ASKED, **RENDERING}[path]
    told = []
    for asked in (body, with_alpha(path, body, 0), with_alpha(path, body, "private=1,repair=1")):
        status, reply = server.post(path, **asked)
        assert status == 200, reply
        told.append(said(reply))
    silent, closed, opened = told
    assert opened != closed
    assert path in RENDERING or silent == closed
    status, reply = server.post(path, **with_alpha(path, body, "ghost=1"))
    assert path in RENDERING or (status, "not attached: ghost" in json.dumps(reply)) == (400, True)


def test_no_route_drops_alpha(server: Server) -> None:
    """Also those that take no request for the engine, and whatever a release of vLLM adds."""
    routes = server.posting_routes()
    assert {*PLACES, "/generative_scoring", "/v1/systemone", "/v1/chat/completions/batch"} <= {
        *routes
    }
    for path in routes:
        bodies = [{**ASKED.get(path, {}), "ortho_alpha": 1}]
        if path not in PLACES:
            bodies.append({"vllm_xargs": {"ortho_alpha": 1}})
        for body in bodies:
            status, reply = server.post(path, **body)
            assert (status, "ortho_alpha" in json.dumps(reply)) == (400, True), (path, reply)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_beam_search_is_refused(server: Server, path: str) -> None:
    beams = {"use_beam_search": True, "n": 2}
    status, reply = server.post(path, **with_alpha(path, ASKED[path], 1), **beams)
    assert (status, "beam search" in json.dumps(reply)) == (400, True), reply
