from typing import Any

from triton.backends.compiler import BaseBackend

ONLY_INTERPRETED = "this backend runs kernels under TRITON_INTERPRET=1 only"


class InterpretedBackend(BaseBackend):
    @staticmethod
    def supports_target(target: Any) -> bool:
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> object:
        raise NotImplementedError(ONLY_INTERPRETED)

    def add_stages(self, stages: dict[str, Any], options: object, language: Any) -> None:
        raise NotImplementedError(ONLY_INTERPRETED)

    def load_dialects(self, context: Any) -> None:
        raise NotImplementedError(ONLY_INTERPRETED)

    def get_module_map(self) -> dict[str, Any]:
        raise NotImplementedError(ONLY_INTERPRETED)
