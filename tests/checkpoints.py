"""Tiny checkpoints on disk, for tests to damage as downloads, quantisers and other tools do."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parents import FAMILIES, random_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from blocklib.checkpoint import inspect
from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.loading import readable
from blocklib.parent import load_parent

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 16060556376\n"
Tensors = dict[str, torch.Tensor]


def saved(folder: Path, family: str = "llama", **sizes: Any) -> Path:
    """A whole checkpoint of a few layers: random weights in float32, and a tokenizer of as many tokens."""
    # GPT-Neo's layers are counted in two places.
    fewer = {} if family == "gpt_neo" else {"num_hidden_layers": 2}
    random_model(FAMILIES[family](**fewer, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer(vocabulary: int = 64) -> PreTrainedTokenizerFast:
    """Bytes it has no room for are left out."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.decoder = decoders.Fuse()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog and runs away from it"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    """The weights, changed in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Keys of a JSON file set; None leaves null there."""
    file = folder / name
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | values))


def pickled(folder: Path, change: Callable[[Tensors], object] = lambda _: None, **saving: Any) -> Path:
    """The same weights in torch's own format."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", **saving)
    return folder / "pytorch_model.bin"


def sharded(folder: Path, shards: int = 2) -> Path:
    """The same weights in several files, and their index, which is returned."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        some = {key: weights[key] for key in sorted(weights)[shard::shards]}
        save_file(some, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(some, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def header(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes after it."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def refused(folder: Path) -> str:
    """The message about a checkpoint that is looked at and not loaded."""
    with pytest.raises((CheckpointError, UnsupportedModelError, FileNotFoundError)) as error:
        readable(inspect(folder))
    assert "\n" not in str(error.value)
    # Loading it must not get past that.
    with pytest.raises(type(error.value)):
        load_parent(str(folder))
    return str(error.value)
