"""A child without the constants that its family multiplies by: they are folded into its weights, and a Llama of these
weights computes the same, to rounding.

An RMS norm takes out the scale of what enters it, its epsilon apart. So the residual is divided by the embedding's
multiplier throughout, and epsilon by its square: the embedding, which may be the head too, stays as it is. The
output projection of a subblock is then multiplied by the residual multiplier over that of the embedding; the
attention's scale goes into the queries, and that of logits into the final norm.
"""

from dataclasses import dataclass

from blocklib.families import MULTIPLIERS, multipliers
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import model_with, own_shape

_OUTPUTS = ("self_attn.o_proj", "self_attn.linear_attn", "mlp.down_proj", "mlp.linear_mlp")
"""The projections whose outputs are added to the residual, of the kinds that other formats carry."""
_WITHOUT = dict(zip(MULTIPLIERS, (None, 1.0, 1.0, 1.0), strict=True))


def has_multipliers(config: PuzzleNasConfig) -> bool:
    """Whether a model of this configuration multiplies by any constant of its own."""
    return multipliers(config) != _WITHOUT


def folded(child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    """The same function with all constants in the weights, those that change in float32; the child itself if it has no
    constants. `child` has grouped attention without norms of queries, dense FFNs and linear maps alone."""
    config = child.config
    if not has_multipliers(config):
        return child
    without = _WITHOUT | {"rms_norm_eps": config.rms_norm_eps / config.embedding_multiplier**2}
    factors = _Factors.of(config)
    weights = child.state_dict()
    changed = {name: factor for name in weights if (factor := factors.of_tensor(name)) != 1}
    weights |= {name: weights[name].float() * factor for name, factor in changed.items()}
    return model_with(PuzzleNasConfig.from_dict(config.to_dict() | without), weights)


@dataclass(frozen=True)
class _Factors:
    """The factors of weights: those of queries, of output projections, and of the final norm."""

    query: float
    output: float
    norm: float

    @staticmethod
    def of(config: PuzzleNasConfig) -> "_Factors":
        scale, size = config.attention_scale, own_shape(config).head_dim
        return _Factors(
            1.0 if scale is None else scale * float(size**0.5),
            config.residual_multiplier / config.embedding_multiplier,
            config.logit_scale,
        )

    def of_tensor(self, name: str) -> float:
        module = name.rpartition(".")[0]
        if module.endswith("self_attn.q_proj"):
            return self.query
        if module.endswith(_OUTPUTS):
            return self.output
        return self.norm if module == "model.norm" else 1.0
