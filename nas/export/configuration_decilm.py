"""The configuration of a DeciLM (Nemotron-NAS) export. This file is copied into the folder that is written.

Engines that run `DeciLMForCausalLM` read `block_configs` as objects (`block_configs[3].ffn.no_op`), but have no
configuration class for the model type. So every such folder carries its own. It needs only transformers, version 4 or
5; the model beside it needs a newer one and says which.
"""

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """A Llama configuration whose layers are sized by `block_configs`, one entry per layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any):
        for sized_by_block in ("intermediate_size", "num_key_value_heads"):
            kwargs.pop(sized_by_block, None)
        super().__init__(**kwargs)
        # Null, as in the published files. This bypasses the type check of transformers 5, which requires a number.
        self.__dict__.update(intermediate_size=None, num_key_value_heads=None)
        # An absent key must stay an absent attribute: vLLM asks `hasattr(block.ffn, "ffn_mult")`.
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**settings) for part, settings in block.items()})
            for block in block_configs or []
        ]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary with the blocks as they were given."""
        as_dict: dict[str, Any] = super().to_dict()
        as_dict["block_configs"] = [
            {part: dict(vars(settings)) for part, settings in vars(block).items()} for block in self.block_configs
        ]
        return as_dict
