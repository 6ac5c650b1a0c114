"""A model family of your own: Seed-OSS, Llama's layout with biases at some projections. See docs/adding/family.md.

    python examples/adding/a_family.py

The script adds the family to the table of its own process, loads a tiny random checkpoint of it, and leaves out one
FFN. Loading compares the logits with those of the checkpoint's own class.
"""

from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, SeedOssConfig

from blocklib.assemble import assemble
from blocklib.block import Choice
from blocklib.families import FAMILIES, Family
from blocklib.parent import load_parent

FAMILIES["seed_oss"] = Family(qkv_bias="attention_bias", o_bias="attention_out_bias", mlp_bias="mlp_bias")


def write_checkpoint(folder: str) -> None:
    """A checkpoint of random weights, written by transformers' own class."""
    config = SeedOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, attention_bias=True, attention_out_bias=False, mlp_bias=True,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(parameter)  # transformers makes biases 0, which would hide a lost one
    model.save_pretrained(folder)


def main() -> None:
    with TemporaryDirectory() as folder:
        write_checkpoint(folder)
        parent = load_parent(folder)  # Its weights stay in the folder.
        child = assemble(parent, parent.architecture.with_(Choice.parse("L1.ffn=skip")), lambda choice: {})
        print(f"parent: {parent.architecture}: {parent.model.num_parameters():,} parameters")
        print(f"child:  {child.config.architecture}: {child.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
