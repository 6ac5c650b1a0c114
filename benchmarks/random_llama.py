"""A Llama of any size with random weights in bfloat16, in as many files as it needs.

    python benchmarks/random_llama.py TOKENIZER OUT [--layers 16 --hidden 2048 --width 8192 --heads 32 --kv-heads 8
                                                     --vocabulary 128256]

The defaults are the sizes of a Llama of 1.2 billion parameters. The tokenizer of the checkpoint in TOKENIZER
is copied. A layer at a time is in memory.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig

_FACTOR = 0.02


def layer(config: LlamaConfig, index: int) -> dict[str, tuple[int, ...]]:
    """The shapes of one layer's tensors."""
    hidden, width, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    named: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    return {f"model.layers.{index}.{name}.weight": shape for name, shape in named.items()}


def random(shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=_FACTOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    sizes = {"layers": 16, "hidden": 2048, "width": 8192, "heads": 32, "kv-heads": 8, "vocabulary": 128256}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    asked = parser.parse_args()
    config = LlamaConfig(
        num_hidden_layers=asked.layers, hidden_size=asked.hidden, intermediate_size=asked.width,
        num_attention_heads=asked.heads, num_key_value_heads=asked.kv_heads, vocab_size=asked.vocabulary,
        max_position_embeddings=8192, tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    asked.out.mkdir(parents=True)
    tokenizer.save_pretrained(asked.out)
    config.save_pretrained(asked.out)
    torch.manual_seed(0)
    tables = {"model.embed_tokens.weight": (asked.vocabulary, asked.hidden), "model.norm.weight": (asked.hidden,)}
    files: dict[str, str] = {}
    for number, shapes in enumerate([tables, *(layer(config, index) for index in range(asked.layers))]):
        name = f"model-{number:05}.safetensors"
        save_file({each: random(shape) for each, shape in shapes.items()}, asked.out / name, {"format": "pt"})
        files |= dict.fromkeys(shapes, name)
    (asked.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


if __name__ == "__main__":
    main()
