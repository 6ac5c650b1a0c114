"""A child as vLLM runs it: the layers of `blocklib/model.py` with vLLM's attention, and vLLM's parallel matrices in
attention and dense FFNs. Every other kind is its own plain module, and each GPU of a tensor-parallel group holds all of
it.

vLLM puts the tokens of all sequences after one another: N tokens, D hidden. A layer adds to the residual as in
`PuzzleNasLayer`; no norm is fused with an addition, because either half of a layer may be absent. Written for vLLM 0.32
(its models `llama.py` and `nemotron_nas.py`).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.sequence import IntermediateTensors

from blocklib.ffn.dense import DenseFFN
from blocklib.kinds import ATTENTION_MODULES, FFN, FFN_MODULES
from blocklib.model import layer_type, multiplied, multiplied_embedding, norms_around
from blocklib.norms import new_norm, rms_norm

_STACKED: dict[str, tuple[str, str | int]] = {
    ".q_proj.": (".qkv_proj.", "q"),
    ".k_proj.": (".qkv_proj.", "k"),
    ".v_proj.": (".qkv_proj.", "v"),
    ".gate_proj.": (".gate_up_proj.", 0),
    ".up_proj.": (".gate_up_proj.", 1),
}
"""Parts of checkpoint names, the tensors of ours that hold them, and which part of these they are."""


class ServedAttention(nn.Module):
    """Grouped-query attention over vLLM's cache, with the window, the norms and the biases that the layer has."""

    def __init__(self, config: Any, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if heads % ranks or max(kv_heads, ranks) % min(kv_heads, ranks):
            raise ValueError(
                f"{prefix}: {heads} heads with {kv_heads} KV heads cannot be divided among {ranks} GPUs; use a "
                "tensor_parallel_size that divides the heads, and divides the KV heads or is a multiple of them"
            )
        quantised = vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            size,
            heads,
            kv_heads,
            config.qkv_bias,
            quant_config=quantised,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * size, config.hidden_size, config.o_bias, quant_config=quantised, prefix=f"{prefix}.o_proj"
        )
        held, kv_held = heads // ranks, max(1, kv_heads // ranks)
        self.sizes, self.head_dim = [held * size, kv_held * size, kv_held * size], size
        self.qk_norm, self.joint_qk_norm = config.qk_norm, config.joint_qk_norm
        if config.joint_qk_norm and ranks > 1:
            raise ValueError(f"{prefix}: one norm over all heads cannot be divided among {ranks} GPUs; use one")
        if config.qk_norm:
            self.q_norm = rms_norm(config, heads * size if config.joint_qk_norm else size)
            self.k_norm = rms_norm(config, kv_heads * size if config.joint_qk_norm else size)
        self.rotary_emb = None
        if config.rotary and not config.learned_positions:
            rope = config.local_rope_parameters if config.local else config.rope_parameters
            self.rotary_emb = get_rope(size, config.max_position_embeddings, rope_parameters=rope)
        self.attn = Attention(
            held,
            size,
            size**-0.5 if config.attention_scale is None else config.attention_scale,
            num_kv_heads=kv_held,
            cache_config=vllm_config.cache_config,
            quant_config=quantised,
            per_layer_sliding_window=config.sliding_window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, inputs_ND: torch.Tensor, positions_N: torch.Tensor) -> torch.Tensor:
        projected, _ = self.qkv_proj(inputs_ND)
        query, key, value = projected.split(self.sizes, dim=-1)
        if self.joint_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        elif self.qk_norm:
            query = self.q_norm(query.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            key = self.k_norm(key.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        if self.rotary_emb is not None:
            query, key = self.rotary_emb(positions_N, query, key)
        output_ND: torch.Tensor
        output_ND, _ = self.o_proj(self.attn(query, key, value))
        return output_ND


class ServedDenseFFN(nn.Module):
    """down(act(gate(x)) * up(x)); without a gate, down(act(up(x))). The width is divided among the GPUs."""

    def __init__(self, config: Any, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        hidden, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        quantised, self.gated = vllm_config.quant_config, config.gated_ffn
        if self.gated:
            self.gate_up_proj = MergedColumnParallelLinear(
                hidden, [width, width], bias, quant_config=quantised, prefix=f"{prefix}.gate_up_proj"
            )
        else:
            self.up_proj = ColumnParallelLinear(hidden, width, bias, quant_config=quantised, prefix=f"{prefix}.up_proj")
        self.down_proj = RowParallelLinear(width, hidden, bias, quant_config=quantised, prefix=f"{prefix}.down_proj")
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, inputs_ND: torch.Tensor) -> torch.Tensor:
        if self.gated:
            projected, _ = self.gate_up_proj(inputs_ND)
            gate, up = projected.chunk(2, dim=-1)
            hidden = self.act_fn(gate) * up
        else:
            projected, _ = self.up_proj(inputs_ND)
            hidden = self.act_fn(projected)
        output_ND: torch.Tensor
        output_ND, _ = self.down_proj(hidden)
        return output_ND


class ServedLayer(nn.Module):
    """One block. Given `entering`, it reads that, and adds what it would to `hidden_ND`."""

    def __init__(self, config: Any, index: int, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        skipped = getattr(config, "skip", [])
        self.attends, self.parallel = layer_type(config) != "moe", config.parallel
        self.norm_placement, self.residual_multiplier = config.norm_placement, config.residual_multiplier
        self.attention_output_norm, self.mlp_output_norm = None, None
        has_both = config.norm_placement == "around"
        self.self_attn: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if "attention" not in skipped:
            self.input_layernorm = new_norm(config)
            self.attention_output_norm = new_norm(config) if has_both else None
            if self.attends:
                self.self_attn = ServedAttention(config, vllm_config, f"{prefix}.self_attn")
            else:
                self.self_attn = ATTENTION_MODULES[config.attention_kind](config, index)
        if "mlp" not in skipped:
            self.post_attention_layernorm = new_norm(config)
            self.mlp_output_norm = new_norm(config) if has_both else None
            if FFN_MODULES[config.ffn_kind] is DenseFFN:
                self.mlp = ServedDenseFFN(config, vllm_config, f"{prefix}.mlp")
            else:
                self.mlp = FFN_MODULES[config.ffn_kind](config)

    def forward(
        self, hidden_ND: torch.Tensor, positions_N: torch.Tensor, entering_ND: torch.Tensor | None
    ) -> torch.Tensor:
        left_ND = hidden_ND if entering_ND is None else entering_ND
        if self.self_attn is not None:
            places = (positions_N,) if self.attends else ()
            norms = norms_around(self.norm_placement, self.input_layernorm, self.attention_output_norm)
            added_ND = self._added(self.self_attn, norms, left_ND, *places)
            left_ND = left_ND + added_ND
            hidden_ND = left_ND if entering_ND is None else hidden_ND + added_ND
        if self.mlp is not None:
            norms = norms_around(self.norm_placement, self.post_attention_layernorm, self.mlp_output_norm)
            hidden_ND = hidden_ND + self._added(self.mlp, norms, left_ND)
        return hidden_ND

    def _added(
        self, subblock: nn.Module, norms: Any, residual_ND: torch.Tensor, *places_N: torch.Tensor
    ) -> torch.Tensor:
        """A subblock's part of the next residual, from the residual that enters it."""
        before, behind = norms
        added_ND = subblock(residual_ND if before is None else before(residual_ND), *places_N)
        return multiplied(added_ND if behind is None else behind(added_ND), self.residual_multiplier)


@support_torch_compile
class ServedModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.config = config
        self.embed_positions = None
        if config.learned_positions:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            [
                ServedLayer(config.per_layer_config[index], index, vllm_config, f"{prefix}.layers.{index}")
                for index in range(config.num_hidden_layers)
            ]
        )
        self.norm = new_norm(config)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded_ND: torch.Tensor = self.embed_tokens(input_ids)
        return embedded_ND

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_ND = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden_ND = multiplied_embedding(hidden_ND, self.config)
        if self.embed_positions is not None:
            hidden_ND = hidden_ND + self.embed_positions(positions)
        entering_ND = hidden_ND
        for layer in self.layers:
            if not layer.parallel:
                entering_ND = hidden_ND
            hidden_ND = layer(hidden_ND, positions, entering_ND if layer.parallel else None)
        output_ND: torch.Tensor = self.norm(hidden_ND)
        return output_ND


class ServedForCausalLM(nn.Module):
    """The class that vLLM makes of an `hf` export. Raises ValueError, naming the layer, where vLLM cannot run it as it
    was started."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        check_settings(config, vllm_config)
        inner = f"{prefix}.model" if prefix else "model"
        self.model = ServedModel(vllm_config=vllm_config, prefix=inner)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        self.tied = config.tie_word_embeddings
        if self.tied:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=config.logit_scale)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_ND: torch.Tensor = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden_ND

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Fill the parameters, and return the names of the filled ones. A name that has no place here is an error."""
        parameters: dict[str, Any] = dict(self.named_parameters())
        loaded = set()
        for name, tensor in weights:
            if name == "lm_head.weight" and self.tied:
                continue
            place, part = _place(name, parameters)
            parameter = parameters[place]
            if part is None:
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            else:
                parameter.weight_loader(parameter, tensor, part)
            loaded.add(place)
        return loaded


def check_settings(config: Any, vllm_config: VllmConfig) -> None:
    """Raise ValueError at the first layer that vLLM cannot run with these settings."""
    if vllm_config.model_config.enforce_eager:
        return
    for index, layer in enumerate(config.per_layer_config):
        if "mlp" not in getattr(layer, "skip", []) and FFN[layer.ffn_kind].is_sparse:
            raise ValueError(
                f"layer {index}: in a {layer.ffn_kind} FFN the shapes depend on the tokens, so it can be neither "
                "compiled nor captured in a CUDA graph; start vLLM with --enforce-eager (enforce_eager=True)"
            )


def _place(name: str, parameters: dict[str, Any]) -> tuple[str, str | int | None]:
    """The parameter that holds a tensor of the checkpoint, and which part of it; None for the whole."""
    if name not in parameters:
        for own, (stacked, part) in _STACKED.items():
            if own in name:
                return name.replace(own, stacked), part
    return name, None
