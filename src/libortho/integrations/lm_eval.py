"""lm-evaluation-harness: a converted model at a given α as ``--model libortho``.

lm-eval finds models outside its own package only once they are imported, so its command line is
started through this module:

    python -m libortho.integrations.lm_eval --model libortho \\
        --model_args path=OUT,ortho_alpha=private=1+repair=1 --tasks …

In Python importing the module is enough: ``simple_evaluate(model="libortho", model_args=…)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from sqlitedict import SqliteDict

from libortho import gate, ops
from libortho.errors import ConfigError
from libortho.evaluate.inputs import as_dtype
from libortho.model import load, ortho
from libortho.streams.ortho import MANIFEST, STREAM_FOLDER, OrthoStream

# What HFLM does to a model that it loads itself; of one that it is given they would be ignored.
_FOREIGN = (
    "pretrained",
    "revision",
    "subfolder",
    "tokenizer",
    "parallelize",
    "tp_plan",
    "peft",
    "delta",
    "autogptq",
    "gptqmodel",
    "gguf_file",
    "trust_remote_code",
)


@register_model("libortho")
class OrthoLM(HFLM):  # type: ignore[misc]
    """A base with its streams, evaluated at one α.

    The answers that lm-eval caches (``--use_cache``) are kept apart by base, dtype, and the ids
    and α of the open streams; results say what they were under ``config``.

    Args:
        path: a directory written by ``libortho quantize``.
        ortho_alpha: a number, or ``private=1+repair=1`` (a comma would end the argument), or a
            mapping. 0 opens nothing, and then no stream is even loaded.
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda.
        kwargs: passed on to lm-eval's ``HFLM``: batch_size, max_length, add_bos_token, …

    Raises:
        ConfigError: arguments of ``HFLM`` that mean nothing here; all of them are named.
        AlphaError: a bad α, or one that names a stream which is not there.
    """

    def __init__(
        self,
        path: str | None = None,
        ortho_alpha: float | str | Mapping[str, float] = 0.0,
        dtype: str = "float32",
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        foreign = [name for name in _FOREIGN if kwargs.get(name)]
        if path is None or foreign:
            told = f"; it takes no {', '.join(foreign)}" if foreign else ""
            raise ConfigError(f"--model libortho needs path=BASE{told}")
        self.ortho_alpha = _setting(ortho_alpha)
        found = sorted(file.parent for file in Path(path, STREAM_FOLDER).glob(f"*/{MANIFEST}"))
        there = [gate.StreamInfo.of(OrthoStream.open(folder)) for folder in found]
        # Before the base is loaded, which may take minutes.
        gate.resolve(self.ortho_alpha, there, 1)
        self._opening = _opening(self.ortho_alpha)
        model = load(
            path,
            # What is closed stays on disk.
            [stream.name for stream in there if _opens(self._opening, stream.name)],
            dtype=as_dtype(dtype),
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        state = ortho(model)
        with gate.alpha(self._opening):
            captured = gate.capture(state.attached, 1, torch.device("cpu"))
        self.open_streams = dict(captured.key[0])
        tokenizer = state.base.checkpoint.tokenizer()
        super().__init__(pretrained=model, tokenizer=tokenizer, **kwargs)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep this α's cached answers in a table of their own.

        lm-eval keys answers by the request alone, and would serve those of one α for another.
        """
        answers = cache_hook.dbdict
        table = "libortho_" + _digest(self._identity())
        # SqliteDict makes the table when it is opened under its name.
        SqliteDict(answers.filename, tablename=table, autocommit=True).close()
        answers.tablename = table
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What goes into the results' ``config``."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_sha": ortho(self.model).base.id,
            "ortho_alpha": self.ortho_alpha,
            "ortho_streams": self._identity()["streams"],
            "ortho_backend": ops.backend().name,
        }

    def _identity(self) -> dict[str, Any]:
        names = {info.id: info.name for info in ortho(self.model).attached}
        return {
            "base": ortho(self.model).base.id,
            "dtype": str(self.model.dtype),
            "streams": {
                names[stream]: {"id": stream, "alpha": alpha}
                for stream, alpha in sorted(self.open_streams.items())
            },
        }

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        with gate.alpha(self._opening):
            return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with gate.alpha(self._opening):
            return super()._model_generate(*args, **kwargs)


def _setting(given: float | str | Mapping[str, float]) -> gate.Setting:
    if isinstance(given, str):
        return gate.parse(given.replace("+", ","))
    found = gate.canonical(given)
    assert not isinstance(found, tuple)
    return found


def _opening(setting: gate.Setting) -> gate.Setting:
    """A setting without the streams that it names and leaves closed."""
    if isinstance(setting, Mapping):
        return {name: value for name, value in setting.items() if value}
    return setting


def _opens(setting: gate.Setting, name: str) -> bool:
    return name in setting if isinstance(setting, Mapping) else bool(setting)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


if __name__ == "__main__":
    cli_evaluate()
