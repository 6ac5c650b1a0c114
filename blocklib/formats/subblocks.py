"""A child as one ordered list of subblocks, which exports to foreign formats group into layers.

A decoder adds one subblock after the other to the residual, so how they are grouped into layers changes nothing but
names. Knows no format.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from blocklib.assemble import MODULES
from blocklib.block import SKIP, Architecture, Choice, Role, Subblock
from blocklib.model import PuzzleNasForCausalLM
from blocklib.shape import Shape


@dataclass(frozen=True)
class Placed:
    """A subblock with weights: its place in the parent, its tensors by their names in a layer, and the child's
    layer."""

    choice: Choice
    weights: dict[str, Tensor]
    layer: int = 0

    @property
    def role(self) -> Role:
        return self.choice.role

    @property
    def subblock(self) -> Subblock:
        assert isinstance(self.choice.what, Subblock)
        return self.choice.what


@dataclass(frozen=True)
class Layer:
    """A decoder layer to write: an attention, then an FFN; either may be absent. `attention_of` and `ffn_of` are the
    child's layers that they come from; None for one that is not the child's."""

    attention: dict[str, Tensor] | None = None
    ffn: dict[str, Tensor] | None = None
    attention_of: int | None = None
    ffn_of: int | None = None


def subblocks_of(child: PuzzleNasForCausalLM) -> tuple[Placed, ...]:
    """The child's subblocks in the order they run, empty slots left out."""
    architecture = Architecture.parse(child.config.architecture)
    found = []
    for index, ((start, block), layer) in enumerate(zip(architecture.placed(), child.model.layers, strict=True)):
        state = layer.state_dict()
        for part in Choice(start, "block", block).parts:
            if part.what != SKIP:
                own = {name: tensor for name, tensor in state.items() if name.split(".")[0] in MODULES[part.role]}
                found.append(Placed(part, own, index))
    return tuple(found)


def repack(stream: tuple[Placed, ...]) -> tuple[Layer, ...]:
    """The list in as few layers as possible, at least one: `kv8+skip skip+skip skip+ffn512` becomes one layer."""
    layers = [Layer()]
    for placed in stream:
        last = layers[-1]
        if placed.role == "attention":
            if last.attention is not None or last.ffn is not None:
                layers.append(Layer())
            layers[-1] = Layer(attention=placed.weights, attention_of=placed.layer)
        elif last.ffn is None:
            layers[-1] = replace(last, ffn=placed.weights, ffn_of=placed.layer)
        else:
            layers.append(Layer(ffn=placed.weights, ffn_of=placed.layer))
    return tuple(layers)


def tensors_of(child: PuzzleNasForCausalLM, layers: tuple[Layer, ...]) -> dict[str, Tensor]:
    """Every tensor of the child in these layers, by the names of Llama checkpoints. A tied head is not there twice."""
    state = {name: tensor for name, tensor in child.state_dict().items() if not name.startswith("model.layers.")}
    if child.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for index, layer in enumerate(layers):
        for part in (layer.attention, layer.ffn):
            state |= {f"model.layers.{index}.{name}": tensor for name, tensor in (part or {}).items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def own_names(layers: tuple[Layer, ...]) -> dict[str, str]:
    """The name in the child of every matrix of these layers, by its name there; "" for one that is not the child's."""
    found = {}
    for index, layer in enumerate(layers):
        for part, of in ((layer.attention, layer.attention_of), (layer.ffn, layer.ffn_of)):
            for name, tensor in (part or {}).items():
                if tensor.dim() == 2:
                    found[f"model.layers.{index}.{name}"] = "" if of is None else f"model.layers.{of}.{name}"
    return found


def tensor_shapes(choice: Choice, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a subblock by its name in a layer, for the kinds that engines of other formats run:
    `kv`, both `linear`, dense and fused FFNs."""
    subblock = choice.what
    assert isinstance(subblock, Subblock)
    if subblock == SKIP:
        return {}
    assert not choice.is_table, f"{choice}: tables have no place in a layer"
    matrices = _attention(subblock, shape) if choice.role == "attention" else _ffn(subblock, shape)
    norm, _, output_norm = MODULES[choice.role]
    norms = (norm, output_norm) if shape.norm_placement == "around" else (norm,)
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (shape.hidden,) for name in norms}
    for name, (outputs, inputs, bias) in matrices.items():
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)
    if shape.qk_norm and subblock.kind == "kv":
        heads, kv_heads = (shape.heads, subblock.number) if shape.joint_qk_norm else (1, 1)
        found["self_attn.q_norm.weight"] = (heads * shape.head_dim,)
        found["self_attn.k_norm.weight"] = (kv_heads * shape.head_dim,)
    return found


_Matrices = dict[str, tuple[int, int, bool]]
"""Outputs, inputs, and whether there is a bias, by the name of the module."""


def _attention(subblock: Subblock, shape: Shape) -> _Matrices:
    if subblock.kind == "linear":
        return {"self_attn.linear_attn": (shape.hidden, shape.hidden, shape.qkv_bias or shape.o_bias)}
    query, kv = shape.heads * shape.head_dim, subblock.number * shape.head_dim
    return {
        "self_attn.q_proj": (query, shape.hidden, shape.qkv_bias),
        "self_attn.k_proj": (kv, shape.hidden, shape.qkv_bias),
        "self_attn.v_proj": (kv, shape.hidden, shape.qkv_bias),
        "self_attn.o_proj": (shape.hidden, query, shape.o_bias),
    }


def _ffn(subblock: Subblock, shape: Shape) -> _Matrices:
    if subblock.kind == "linear":
        return {"mlp.linear_mlp": (shape.hidden, shape.hidden, shape.mlp_bias)}
    width = width_of(subblock)
    return {
        "mlp.gate_proj": (width, shape.hidden, shape.mlp_bias),
        "mlp.up_proj": (width, shape.hidden, shape.mlp_bias),
        "mlp.down_proj": (shape.hidden, width, shape.mlp_bias),
    }


def width_of(ffn: Subblock) -> int:
    """The width of a dense FFN or of a fused run."""
    return sum(part.number for part in ffn.parts) if ffn.parts else ffn.number
