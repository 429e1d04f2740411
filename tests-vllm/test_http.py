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
        flags += ["--chat-template", "{{ messages[0].content }}"]
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
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

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
    ],
)
def test_alpha_that_cannot_be_honoured_is_400(server: Server, alpha: Any, said: str) -> None:
    status, reply = server.post(prompt=[1, 2], max_tokens=1, vllm_xargs={"ortho_alpha": alpha})
    assert (status, said in json.dumps(reply)) == (400, True), reply


MISPLACED = {"ortho_alpha": 1}
WITH_BEAMS = {"vllm_xargs": {"ortho_alpha": 1}, "use_beam_search": True, "n": 2}
MESSAGES = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("completions", {"prompt": [1, 2], **MISPLACED}, "vllm_xargs"),
        ("completions", {"prompt": [1, 2], **WITH_BEAMS}, "beam search"),
        ("chat/completions", {**MESSAGES, **MISPLACED}, "vllm_xargs"),
        ("chat/completions", {**MESSAGES, **WITH_BEAMS}, "beam search"),
        ("responses", {"input": "x", **MISPLACED}, "vllm_xargs"),
    ],
)
def test_alpha_that_vllm_would_drop_is_400(server: Server, path: str, body: Any, said) -> None:
    status, reply = server.post(f"/v1/{path}", **body)
    assert (status, said in json.dumps(reply)) == (400, True), reply
