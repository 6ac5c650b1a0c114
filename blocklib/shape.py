"""The sizes every cost formula needs, read off a model's configuration. Knows no weights and imports no torch."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a parent. `ffn_width` and `kv_heads` are the parent's own, the largest any of its subblocks has.

    `gated`: the FFN is down(act(gate(x)) * up(x)), else down(act(up(x))). `layer_norm`: norms subtract the mean and add
    a bias, else they are RMS norms. `positions` is how many learned positions there are; 0: they are rotary.
    `norms_after`: an attention and an FFN read the residual as it is, and what they add is normed. `joint_qk_norm`: the
    queries of all heads have one norm, and so have the keys.
    """

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
    hidden_act: str = "silu"
    gated: bool = True
    layer_norm: bool = False
    positions: int = 0
    # Not shown, so that the digests of parents without them do not change.
    norms_after: bool = field(default=False, repr=False)
    joint_qk_norm: bool = field(default=False, repr=False)

    @property
    def sizes(self) -> dict[str, Any]:
        """The part of it that keys hold: `own_steps` of a configuration (`blocklib/parent.py`) has the rest."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.repr}

    @property
    def norm_parameters(self) -> int:
        """The parameters of one norm."""
        return self.hidden * (2 if self.layer_norm else 1)

    @property
    def ffn_matrices(self) -> int:
        """Matrices of the parent's FFN, each hidden x width."""
        return 3 if self.gated else 2

    @property
    def fixed_parameters(self) -> int:
        """Embeddings of tokens and positions, final norm and head; a tied head is counted once."""
        return (self.vocabulary * (1 if self.tied else 2) + self.positions) * self.hidden + self.norm_parameters
