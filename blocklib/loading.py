"""A checkpoint held against the model its config.json describes: no tensor left over, none made up.

The model is built without weights, so that names and shapes are compared before anything is read. Whatever
transformers or torch say of a checkpoint's file ends here, as that file, the cause and a remedy.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from blocklib.checkpoint import Checkpoint, Tensor, check_layers, enumerated, is_old_buffer, is_same
from blocklib.errors import CheckpointError, UnsupportedModelError
from blocklib.families import shape_of
from blocklib.shape import Shape

_HEAD = "lm_head.weight"
AGAIN = "correct config.json, or copy or download the checkpoint again"


@dataclass(frozen=True)
class Readable:
    """A checkpoint that holds exactly what its model needs. `config` is transformers', tied or not as the files are.

    `tensors` has the place of every tensor of that model, by its name there; head and embedding are at one where they
    are tied. `notes` say where the files were followed and config.json was not.
    """

    checkpoint: Checkpoint
    config: Any
    shape: Shape
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def readable(checkpoint: Checkpoint) -> Readable:
    """Compare the tensors' names and shapes with those of the model that config.json describes.

    Raises UnsupportedModelError for attention no parent can have, CheckpointError for tensors missing, left over or of
    another shape, and for a configuration transformers cannot read.
    """
    file = checkpoint.config_file
    with reading(file, "correct it"):
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        # How attention is computed is no property of a checkpoint; what its config.json names may not be installed.
        config._attn_implementation = None
        try:
            shape = shape_of(config)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{file}: {error}") from error
    is_pickled = checkpoint.weights[0].suffix != ".safetensors"
    stored = _pickled(checkpoint.weights) if is_pickled else dict(checkpoint.tensors)
    check_layers(file, stored, shape.layers)
    with reading(file, "correct it"), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    embedding = f"{model.base_model_prefix}.{'embed_tokens' if not shape.layer_norm else 'wte'}.weight"
    named = _full_names(stored, expected, model.base_model_prefix)
    tied, notes = _tied(checkpoint, stored, named, embedding, shape.tied)
    _check_names(checkpoint, named, expected, {_HEAD, embedding} if tied else set())
    _check_shapes(checkpoint, named, expected)
    config.tie_word_embeddings = tied
    if tied:
        named |= dict.fromkeys((_HEAD, embedding), named[embedding if embedding in named else _HEAD])
    return Readable(checkpoint, config, replace(shape, tied=tied), named, notes)


def check_range(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Raise CheckpointError where a weight is NaN, infinite, or too large for `dtype`, naming the tensor.

    Reads the weights, a tensor at a time, where they are stored in a type of a wider range; else nothing.
    """
    for path in checkpoint.weights:
        for name, tensor in _tensors(path, torch.finfo(dtype).max):
            largest = tensor.abs().max() if tensor.numel() else torch.zeros(())
            if not torch.isfinite(largest):
                raise CheckpointError(path, f"{name} holds NaN or infinite values", "the checkpoint is damaged")
            if not torch.isfinite(largest.to(dtype)):
                kind = str(dtype).removeprefix("torch.")
                raise CheckpointError(
                    path,
                    f"{name} holds {largest.item():.6g}, and {kind} ends at {torch.finfo(dtype).max:.6g}",
                    "give scenario.dtype: bfloat16 or float32",
                )


@contextmanager
def reading(file: Path, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises at a checkpoint's file into one that names the file."""
    try:
        yield
    except (CheckpointError, UnsupportedModelError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        if isinstance(error, KeyError):
            said = f"{said} is unknown, or missing"
        elif not isinstance(error, ValueError | OSError | RuntimeError):
            said = f"{type(error).__name__}: {said}"
        raise CheckpointError(file, f"cannot be read: {said}", remedy) from error


def _pickled(weights: tuple[Path, ...]) -> dict[str, Tensor]:
    """Names and shapes in files of torch's own format. No code of theirs is run: torch reads tensors only."""
    found: dict[str, Tensor] = {}
    for path in weights:
        for name, tensor in unpickled(path, "meta").items():
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(path, f"{name} is a {type(tensor).__name__}, not a tensor", AGAIN)
            if not tensor.is_floating_point() and not is_old_buffer(name):
                raise CheckpointError(path, f"{name} is stored as {tensor.dtype}, quantised", "give a float checkpoint")
            found[name] = Tensor(name, path, str(tensor.dtype), tuple(tensor.shape))
    return found


def unpickled(path: Path, device: str) -> Mapping[str, Any]:
    """The tensors of a file in torch's own format, mapped where it is an archive. Raises CheckpointError."""
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    try:
        found = torch.load(path, map_location=device, weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            "is a pickle that holds more than tensors, or is damaged; it might run code, and was not loaded",
            "give the checkpoint as safetensors",
        ) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(path, f"cannot be read: {said[:200]}", "give the checkpoint as safetensors") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(path, f"holds a {type(found).__name__}, not tensors by name", "save a state_dict there")
    return found


def _tensors(path: Path, most: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating-point tensors of a file whose type goes past `most`, one after the other."""
    if path.suffix != ".safetensors":
        for name, tensor in unpickled(path, "cpu").items():
            if tensor.is_floating_point() and torch.finfo(tensor.dtype).max > most:
                yield name, tensor
        return
    with reading(path, AGAIN), safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            if file.get_slice(name).get_dtype() in ("F64", "F32", "BF16"):
                tensor = file.get_tensor(name)
                if torch.finfo(tensor.dtype).max > most:
                    yield name, tensor


def _full_names(stored: Mapping[str, Tensor], expected: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors by the names of the whole model's; a model saved without its head has shorter ones."""

    def full(name: str) -> str:
        return f"{prefix}.{name}" if name not in expected and f"{prefix}.{name}" in expected else name

    return {full(name): tensor for name, tensor in stored.items() if not is_old_buffer(name)}


def _tied(
    checkpoint: Checkpoint, stored: Mapping[str, Tensor], named: Mapping[str, Tensor], embedding: str, flag: bool
) -> tuple[bool, tuple[str, ...]]:
    """Whether head and embedding are one tensor, as the files hold them, and what to say where config.json differs."""
    head, table = named.get(_HEAD), named.get(embedding)
    says = f"{checkpoint.config_file} says tie_word_embeddings: {str(flag).lower()}"
    if flag and head is not None and table is not None and not _are_equal(head, table):
        return False, (f"{says}, and the weights hold a head of its own: it is used, not the embedding",)
    # Files of a whole model leave out nothing but what is tied; those of a model without its head may lack one.
    if not flag and head is None and embedding in stored:
        return True, (f"{says}, and the weights hold no head: the embedding is used",)
    return flag, ()


def _are_equal(head: Tensor, table: Tensor) -> bool:
    if head.file.suffix == ".safetensors":
        return is_same(head, table)
    one, other = (unpickled(tensor.file, "cpu")[tensor.name] for tensor in (head, table))
    return bool(torch.equal(one, other))


def _check_names(
    checkpoint: Checkpoint, named: Mapping[str, Tensor], expected: Mapping[str, Any], one_of: set[str]
) -> None:
    """`one_of`: names of which one stands for all."""
    missing = sorted(name for name in expected.keys() - named.keys() if name not in one_of)
    if one_of and not one_of & named.keys():
        missing = sorted([*missing, min(one_of)])
    left = sorted(named.keys() - expected.keys())
    if missing:
        instead = f", and holds {enumerated(left)}, unknown to its model" if left else ""
        raise CheckpointError(checkpoint.folder, f"the checkpoint lacks {enumerated(missing)}{instead}", AGAIN)
    if left:
        raise CheckpointError(
            named[left[0]].file,
            f"holds {enumerated(left)}, which its config.json's model does not have",
            f"{AGAIN}; a parent is a plain causal model, saved by save_pretrained",
        )


def _check_shapes(checkpoint: Checkpoint, named: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = sorted(name for name in named if named[name].shape != expected[name])
    if wrong:
        held, asked = named[wrong[0]], expected[wrong[0]]
        more = f" ({len(wrong) - 1} more tensors are of other shapes)" if len(wrong) > 1 else ""
        cause = f"{wrong[0]} is {list(held.shape)}, and config.json makes it {list(asked)}{more}"
        raise CheckpointError(held.file, cause, AGAIN)
