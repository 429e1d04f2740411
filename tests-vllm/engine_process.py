"""A vLLM engine in a process of its own, driven over a socket by ``engines.Engine``.

The engine core runs in this process too, where the engine allows it, so that what a batch is made
of depends on the requests alone, and not on when they arrive.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from multiprocessing.connection import Client
from typing import Any

OPENED: set[str] = set()


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        OPENED.add(arguments[0])


class Served:
    """What the tests may ask of the process."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.preempted = 0

    def start(self, **options: Any) -> None:
        from vllm import LLM

        self.llm = LLM(**options)

    def config_hash(self, **options: Any) -> str:
        """The key of compiled graphs, as far as the engine's configuration makes it."""
        from vllm.engine.arg_utils import EngineArgs

        return str(EngineArgs(**options).create_engine_config().compute_hash())

    def front_says(self, options: dict[str, Any], alpha: Any) -> str:
        """How the request check of an engine answers, before any engine runs."""
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.input_processor import InputProcessor

        processor = InputProcessor(EngineArgs(**options).create_engine_config())
        arguments = None if alpha is None else {"ortho_alpha": alpha}
        try:
            processor.process_inputs(
                "request",
                {"type": "token", "prompt_token_ids": [1, 2, 3]},
                SamplingParams(max_tokens=1, extra_args=arguments),
                ("generate",),
            )
        except VLLMValidationError as error:
            return str(error)
        return ""

    def start_without(self, layer: str, **options: Any) -> None:
        """Start an engine in which one linear is not run by the plugin's method."""
        from libortho.serve.config import OrthoConfig

        original = OrthoConfig.get_quant_method

        def get_quant_method(config: Any, module: Any, prefix: str) -> Any:
            if prefix.endswith(layer):
                return super(OrthoConfig, config).get_quant_method(module, prefix)
            return original(config, module, prefix)

        OrthoConfig.get_quant_method = get_quant_method
        self.start(**options)

    def start_swapped(self, stream: str, other: str, **options: Any) -> None:
        """Start an engine under which a stream is exchanged before its layers are read."""
        from libortho.serve.config import OrthoConfig

        original = OrthoConfig.base

        def base(config: Any) -> Any:
            if os.path.isdir(other):
                shutil.rmtree(stream)
                shutil.move(other, stream)
            return original(config)

        OrthoConfig.base = base
        self.start(**options)

    def generate(
        self, prompts: list[list[int]], alphas: list[Any], tokens: int, salts: Any = None
    ) -> list[dict[str, Any]]:
        """Greedy continuations: tokens, their log-probabilities, and cached prompt tokens."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                logprobs=1,
                extra_args=None if alpha is None else {"ortho_alpha": alpha},
            )
            for alpha in alphas
        ]
        requests = [
            {"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})}
            for prompt, salt in zip(prompts, salts or [None] * len(prompts), strict=True)
        ]
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        return [
            {
                "tokens": list(output.outputs[0].token_ids),
                "log_probs": [
                    position[token].logprob
                    for token, position in zip(
                        output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True
                    )
                ],
                "cached": output.num_cached_tokens or 0,
            }
            for output in outputs
        ]

    def orders(self, orders: list[list[tuple[list[int], Any]]], tokens: int) -> list[Any]:
        """Run sequences of requests, one by one, each sequence on an empty prefix cache."""
        results = []
        for order in orders:
            self.forget()
            results.append([self.generate([p], [a], tokens)[0] for p, a in order])
        return results

    def forget(self) -> None:
        assert self.llm.reset_prefix_cache()

    def timed(self, prompts: list[list[int]], tokens: int, alpha: Any = None) -> float:
        """Tokens per second of one batch, on an empty prefix cache."""
        self.forget()
        start = time.perf_counter()
        results = self.generate(prompts, [alpha] * len(prompts), tokens)
        seconds = time.perf_counter() - start
        return sum(len(result["tokens"]) for result in results) / seconds

    def count_preemptions(self) -> None:
        from vllm.v1.core.sched.scheduler import Scheduler

        original = Scheduler._preempt_request

        def preempt(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            self.preempted += 1
            return original(scheduler, *args, **kwargs)

        Scheduler._preempt_request = preempt

    def preemptions(self) -> int:
        return self.preempted

    def core_refuses(self, arguments: dict[str, Any], resumable: bool = False) -> str:
        """What the engine core says to a request that no front end has checked."""
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id="unchecked",
            prompt_token_ids=[1, 2, 3],
            mm_features=None,
            sampling_params=SamplingParams(max_tokens=1, extra_args=arguments),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            resumable=resumable,
        )
        core = self.llm.llm_engine.engine_core.engine_core
        try:
            core.preprocess_add_request(request)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def resumable(self) -> str:
        """What the front end says to a resumable request."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        processor = self.llm.llm_engine.input_processor
        try:
            processor.process_inputs(
                "session",
                {"type": "token", "prompt_token_ids": [1, 2, 3]},
                SamplingParams(max_tokens=1),
                ("generate",),
                resumable=True,
            )
        except VLLMValidationError as error:
            return str(error)
        return ""

    def memory(self) -> dict[str, int]:
        """Bytes of each stream, by the configuration's own account."""
        return dict(self.llm.llm_engine.vllm_config.quant_config.bytes)

    def runner(self) -> str:
        engine = self.llm.llm_engine.vllm_config
        return "V2" if engine.use_v2_model_runner else "V1"

    def opened(self, part: str) -> list[str]:
        return sorted(name for name in OPENED if part in name)

    def modules(self, package: str) -> list[str]:
        return sorted(module for module in sys.modules if module.split(".")[0] == package)


def main() -> None:
    sys.addaudithook(watch)
    served = Served()
    with Client(sys.argv[1], authkey=os.environ["ENGINE_KEY"].encode()) as connection:
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                return
            try:
                connection.send(("done", getattr(served, name)(**arguments)))
            except Exception as error:
                traceback.print_exc()
                connection.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
