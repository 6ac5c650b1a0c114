"""A GGUF file's model, read by transformers into float32 under the configuration that its header means, and saved as a
checkpoint like any other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from blocklib.checkpoint import enumerated
from blocklib.errors import CheckpointError
from blocklib.gguf_config import config_values, generation_values
from blocklib.gguf_header import ROTARY, GgufHeader
from blocklib.loading import reading

_ORIGINAL = "copy it again, or give the folder of the checkpoint it was made from"
_NARROW = (torch.bfloat16, torch.float16)


def save_model(header: GgufHeader, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors: the numbers of the file, in the narrowest type
    that holds them all. Raises CheckpointError where a tensor is missing, left over or not finite."""
    with reading(header.file, _ORIGINAL):
        model = _loaded(header)
    _check_whole(header, model)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(header.file, f"{name} holds NaN or infinite values", "the file is damaged")
    model.to(_narrowest(model.state_dict()))
    model.generation_config = GenerationConfig(**generation_values(header))
    model.save_pretrained(folder)


def _loaded(header: GgufHeader) -> Any:
    values = config_values(header, _rotary(header))
    file = header.file
    loading: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=AutoConfig.for_model(header.architecture, **values),
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, info = loading
    if missing := sorted(str(name) for name in info["missing_keys"]):
        raise CheckpointError(file, f"lacks {enumerated(missing)}", _ORIGINAL)
    return _without_marks(model, AutoConfig.for_model(header.architecture, **values))


def _without_marks(model: Any, config: Any) -> Any:
    """The same weights in a model that does not say how its file is stored: the reader's is marked as quantised."""
    with torch.device("meta"):
        plain: Any = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    return plain


def _check_whole(header: GgufHeader, model: Any) -> None:
    """Every tensor of the file is one of the model's, and the other way round; the reader leaves out what it does not
    know without a word."""
    held = len(model.state_dict()) - int(bool(model.config.tie_word_embeddings))
    if len(header.weights) != held:
        cause = f"holds {len(header.weights)} tensors, and a {header.architecture} model of its sizes has {held}"
        raise CheckpointError(header.file, cause, "a parent is a plain causal model; " + _ORIGINAL)
    wanted = {tuple(tensor.shape) for tensor in model.state_dict().values()}
    if strange := sorted(name for name, tensor in header.weights.items() if tensor.shape not in wanted):
        raise CheckpointError(header.file, f"{strange[0]} is of a shape that no weight of its model has", _ORIGINAL)


def _rotary(header: GgufHeader) -> Sequence[float] | None:
    """The numbers of `rope_freqs.weight`, which converters write in float32."""
    tensor = header.tensors.get(ROTARY)
    if tensor is None:
        return None
    if tensor.type != "f32":
        raise CheckpointError(header.file, f"{ROTARY} is stored as {tensor.type}, not f32", _ORIGINAL)
    with header.file.open("rb") as file:
        file.seek(tensor.start)
        found: list[float] = torch.frombuffer(
            bytearray(file.read(tensor.end - tensor.start)), dtype=torch.float32
        ).tolist()
    return found


def _narrowest(weights: dict[str, torch.Tensor]) -> torch.dtype:
    for dtype in _NARROW:
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in weights.values()):
            return dtype
    return torch.float32
