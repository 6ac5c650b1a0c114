"""The sizes every cost formula needs, read off a model's configuration. Knows no weights and imports no torch."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a parent. `ffn_width` and `kv_heads` are the parent's own, the largest any of its subblocks has.

    `gated`: the FFN is down(act(gate(x)) * up(x)), else down(act(up(x))). `layer_norm`: norms subtract the mean and add
    a bias, else they are RMS norms. `positions` is how many learned positions there are; 0: they are rotary.
    `norm_placement`: "before": an attention and an FFN read the normed residual; "after": they read it as it is, and
    what they add is normed; "around": both are normed. `joint_qk_norm`: the queries of all heads have one norm, and so
    have the keys. The attention of `local_layers` sees the last `local_window` tokens.
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
    norm_placement: str = field(default="before", repr=False)
    joint_qk_norm: bool = field(default=False, repr=False)
    local_layers: tuple[int, ...] = field(default=(), repr=False)
    local_window: int | None = field(default=None, repr=False)

    @property
    def sizes(self) -> dict[str, Any]:
        """The part of it that keys hold: `own_steps` of a configuration (`blocklib/parent.py`) has the rest."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.repr}

    @property
    def written(self) -> dict[str, Any]:
        """As a table of costs holds it, in JSON's values: earlier tables say `norms_after` for "after"."""
        return asdict(self) | {
            "norms_after": self.norm_placement == "after",
            "local_layers": list(self.local_layers),
        }

    @property
    def norm_parameters(self) -> int:
        """The parameters of one norm."""
        return self.hidden * (2 if self.layer_norm else 1)

    @property
    def subblock_norm_parameters(self) -> int:
        """The parameters of the norms of one subblock."""
        return self.norm_parameters * (2 if self.norm_placement == "around" else 1)

    @property
    def norms_output(self) -> bool:
        """Whether what a subblock adds is normed, so that it is no linear function of its last projection."""
        return self.norm_placement != "before"

    def window(self, layer: int) -> int | None:
        """How many tokens the attention of a parent's layer sees; None: all. A model of more layers than the parent, as
        it is built for timing, has the parent's again and again."""
        return self.local_window if layer % self.layers in self.local_layers else None

    @property
    def ffn_matrices(self) -> int:
        """Matrices of the parent's FFN, each hidden x width."""
        return 3 if self.gated else 2

    @property
    def fixed_parameters(self) -> int:
        """Embeddings of tokens and positions, final norm and head; a tied head is counted once."""
        return (self.vocabulary * (1 if self.tied else 2) + self.positions) * self.hidden + self.norm_parameters
