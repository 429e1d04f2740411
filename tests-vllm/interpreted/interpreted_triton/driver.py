from typing import Any

from triton.backends.driver import DriverBase

ONLY_INTERPRETED = "this backend runs kernels under TRITON_INTERPRET=1 only"


class InterpretedDriver(DriverBase):
    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cpu", 0, 0)

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(ONLY_INTERPRETED)

    def get_benchmarker(self) -> Any:
        raise NotImplementedError(ONLY_INTERPRETED)
