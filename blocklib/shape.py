"""The sizes every cost formula needs, read off a model's configuration. Knows no weights and imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a parent. `ffn_width` and `kv_heads` are the parent's own, the largest any of its subblocks has."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def fixed_parameters(self) -> int:
        """Embedding, final norm and head; a tied head is counted once."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden
