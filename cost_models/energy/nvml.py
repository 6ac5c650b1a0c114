"""The energy counter of an NVIDIA GPU, through NVML. The one file that imports pynvml, which is optional."""

import torch

from cost_models.errors import NoMeterError


class Nvml:
    """One GPU, by the UUID that NVML calls it. Raises NoMeterError without pynvml or a driver, and where the GPU counts
    none (before Volta, or a part of one)."""

    sample_s = 1.0
    """The counter moves ten to fifty times in a second."""

    def __init__(self, uuid: str):
        try:
            import pynvml  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise NoMeterError(
                "nvidia-ml-py, which reads the energy of a GPU, is not installed: pip install 'puzzle-nas[energy]'"
            ) from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._start_mj = self._read()
        except pynvml.NVMLError as error:
            raise NoMeterError(f"{uuid} does not report energy ({error}); leave energy out of the budget") from error

    def joules(self) -> float:
        return (self._read() - self._start_mj) / 1e3

    def _read(self) -> int:
        """Millijoules since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def uuid_of(device: str) -> str:
    """NVML's name for one of torch's GPUs: each may number them in its own order."""
    if not torch.cuda.is_available():
        raise NoMeterError(f"torch {torch.__version__} finds no {device} here; use cpu")
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
