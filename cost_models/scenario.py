"""Where and how a model is served: the conditions every time is measured under. Standard library only.

Knows nothing of the machine itself: `hardware.py` does.
"""

import re
from dataclasses import dataclass

from cost_models.errors import ScenarioError

_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


@dataclass(frozen=True)
class Scenario:
    """A batch of requests that come in together: each has `prompt_tokens`, and is answered with `generated_tokens`.

    The first generated token comes out of the prefill; each other one takes a decode step. `threads` are torch's on
    the CPU; None means all cores this process may use. Raises ScenarioError where a value makes no sense.
    """

    device: str
    dtype: str
    batch: int
    prompt_tokens: int
    generated_tokens: int
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ScenarioError(f"device {self.device!r} is not one of torch's; use cpu, cuda, cuda:1, xpu or mps")
        bytes_per_value(self.dtype)
        for name in ("batch", "prompt_tokens", "generated_tokens"):
            if getattr(self, name) < 1:
                raise ScenarioError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ScenarioError(f"threads is {self.threads}; it must be at least 1, or None for all cores")

    def __str__(self) -> str:
        return self.key()

    @property
    def context_tokens(self) -> int:
        """Tokens one sequence holds at the end."""
        return self.prompt_tokens + self.generated_tokens

    @property
    def bytes_per_value(self) -> int:
        return bytes_per_value(self.dtype)

    def key(self) -> str:
        """Its one spelling: equal scenarios, and no others, have the same."""
        threads = "all" if self.threads is None else self.threads
        return (
            f"{self.device},{self.dtype},batch={self.batch},prompt={self.prompt_tokens},"
            f"generated={self.generated_tokens},threads={threads}"
        )


def bytes_per_value(dtype: str) -> int:
    """Bytes of one number. Raises ScenarioError naming the dtypes there are."""
    if dtype not in _BYTES_PER_VALUE:
        raise ScenarioError(f"dtype {dtype!r} is not supported; use {', '.join(_BYTES_PER_VALUE)}")
    return _BYTES_PER_VALUE[dtype]
