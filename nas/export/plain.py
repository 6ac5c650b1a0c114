"""Export as a plain checkpoint of the parent's own family, which every loader of that family takes as it is.

Such a checkpoint has one size for all layers: so many KV heads, so wide an FFN. The child's subblocks are packed into
as few layers as possible, so whole blocks may be missing. The configuration is the parent's with these sizes; the
tensors go by the family's names (`blocklib/families.py`).

The export is checked in a fresh process, which loads it with transformers alone: no flag, and no code but its own.
Matrices may be stored in compressed-tensors' formats (`rounded.py`).
"""

import json
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from blocklib.block import SKIP, Architecture, Block, Choice, Parallel
from blocklib.families import FAMILIES, family_names, resized
from blocklib.formats.subblocks import Layer, own_names, repack, subblocks_of, tensors_of
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import own_shape
from blocklib.precisions.compressed_child import CompressedChild
from nas.errors import UnsupportedExportError
from nas.export.carried_files import write_tokenizer
from nas.export.exported import Card, Exported, files_in, whole_folder
from nas.export.parent_settings import ParentSettings, check_settings
from nas.export.rounded import SECTION, RoundedMatrices, compressed, notes_on
from nas.export.transformers_folder import described, loading_lines

_KINDS = {"attention": "kv", "ffn": "ffn"}
_INSTEAD = "export as hf, which carries it, or search with space.plain: true"
_CHANGED = {
    "attention_layers": "one layer for each block",
    "attention_types": "one layer for each block",
    "intermediate_size": "the child's FFN width",
    "n_inner": "the child's FFN width",
    "no_rope_layers": "those of the child",
    "num_key_value_heads": "the child's KV heads",
}
"""Fields of config.json that differ from the parent's because of this format, each with its reason."""
_LOADING = """
No flag and no code of its own: it is a {architecture} like its parent, with one size for all layers. So whatever loads
its parent loads it:

```
vllm serve FOLDER
lm_eval --model hf --model_args pretrained=FOLDER --tasks TASKS
python convert_hf_to_gguf.py FOLDER
```
"""


def export_plain(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
    rounded: RoundedMatrices | None = None,
) -> Exported:
    """Write the child to `out` as its parent's family, reload it in a fresh process that cannot import this package and
    runs no code of the folder, and compare, as `export_hf` does.

    `card` is Markdown, with YAML front matter or without. `rounded`: matrices are stored in compressed-tensors'
    formats, and the reloaded model is compared with the child as these leave it.

    Raises UnsupportedExportError naming the subblock that such a checkpoint cannot carry, FileExistsError where `out`
    is not empty, ExportMismatchError where the reloaded model is not the child. After an error nothing is left behind.
    """
    if parent is None:
        raise UnsupportedExportError("a plain checkpoint is of its parent's family; give the parent's settings")
    held = compressed(child, rounded)
    if held is not None and FAMILIES[parent.config.model_type].joint:
        raise UnsupportedExportError(
            f"a {parent.config.model_type} checkpoint stores queries, keys and values as one matrix, and gate and up "
            "as another; this export does not write these in fp8 or int4; leave out the precision"
        )
    model = _of_family(child, parent.config)
    model.generation_config = deepcopy(parent.generation.settings)
    has_code = type(tokenizer)._auto_class is not None
    loading = loading_lines(False, has_code) + _LOADING.format(architecture=type(model).__name__)
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        if held is not None:
            _store_compressed(folder, child, held, parent.config.model_type)
        write_tokenizer(tokenizer, parent, folder)
        written = AutoConfig.from_pretrained(folder)
        notes = notes_on(held) + _notes(written) + check_settings(folder, written, parent, _CHANGED | SECTION)
        told = Card(card, loading, notes=notes)
        reference = child if held is None else held.model
        difference, notes = described(folder, reference, tokenizer, told, remote_code=False)
    return Exported(out, "plain", difference, files_in(out), notes)


def _store_compressed(folder: Path, child: PuzzleNasForCausalLM, held: CompressedChild, model_type: str) -> None:
    """Put the compressed matrices in place of those that were written, and say so in config.json."""
    for written in folder.glob("model*.safetensors*"):
        written.unlink()
    layers = plain_layers(child)
    own = own_names(layers)
    save_torch_state_dict(family_names(model_type, held.tensors(tensors_of(child, layers), own)), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"quantization_config": held.config(own)}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_plain(choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError at the first choice that no child with layers of one size can have."""
    shape = own_shape(config)
    for choice in choices:
        if choice.what == Block(SKIP, SKIP):
            continue
        for role, subblock in choice.subblocks:
            if isinstance(choice.what, Parallel) or subblock.kind != _KINDS[role]:
                raise UnsupportedExportError(
                    f"{choice}: all layers of a plain checkpoint have attention with KV heads and an FFN of the "
                    f"parent's kind, one after the other; {_INSTEAD}"
                )
            if shape.layer_norm and role == "attention" and subblock.number != shape.heads:
                raise UnsupportedExportError(
                    f"{choice}: the parent's family has as many KV heads as heads, {shape.heads}; leave it out of "
                    "space.attention, or export as hf, which carries it"
                )


def plain_layers(child: PuzzleNasForCausalLM) -> tuple[Layer, ...]:
    """The child's layers, each with an attention and an FFN, all of one size. Raises UnsupportedExportError, naming the
    subblock."""
    architecture, stream = Architecture.parse(child.config.architecture), subblocks_of(child)
    check_plain((choice for choice in architecture.choices() if isinstance(choice.what, Parallel)), child.config)
    check_plain((placed.choice for placed in stream), child.config)
    if not stream:
        raise UnsupportedExportError("the child has no layer left, and a plain checkpoint has at least one")
    for place, placed in enumerate(stream):
        like = stream[place % 2]
        if placed.role != ("attention", "ffn")[place % 2]:
            raise UnsupportedExportError(
                f"{placed.choice}: every layer of a plain checkpoint has attention, then an FFN, and here one of them "
                f"is missing; {_INSTEAD}"
            )
        if placed.subblock.unrounded != like.subblock.unrounded:
            raise UnsupportedExportError(
                f"{placed.choice}: a plain checkpoint has one size for all layers, and {like.choice} is of another; "
                f"{_INSTEAD}"
            )
    if len(stream) % 2:
        raise UnsupportedExportError(f"{stream[-1].choice}: the last layer has no FFN; {_INSTEAD}")
    return repack(stream)


def _places_of(child: PuzzleNasForCausalLM, layers: tuple[Layer, ...]) -> list[int]:
    """The parent's layers in whose place the attention of each of these layers stands."""
    starts = [start for start, _ in Architecture.parse(child.config.architecture).placed()]
    return [starts[layer.attention_of] for layer in layers if layer.attention_of is not None]


def _notes(written: PretrainedConfig) -> tuple[str, ...]:
    """Sentences on what some loaders of the family do not read."""
    count, notes = range(1, written.num_hidden_layers + 1), []
    every = getattr(written, "_sliding_window_pattern", None)
    full = [layer for layer in count if every and written.layer_types[layer - 1] == "full_attention"]
    if every and full != [layer for layer in count if layer % every == 0]:
        notes.append(
            f"Layers that see all tokens are not every {every}th: config.json lists them (layer_types). transformers "
            "reads that list; llama.cpp does not, and its converter makes another model of this folder."
        )
    every = getattr(written, "no_rope_layer_interval", None)
    if every is None or written.no_rope_layers == [int(layer % every != 0) for layer in count]:
        return tuple(notes)
    return (
        *notes,
        f"Layers without positions are not every {every}th any more: config.json lists them (no_rope_layers). "
        "transformers reads that list; llama.cpp does not, and its converter makes another model of this folder.",
    )


def _of_family(child: PuzzleNasForCausalLM, parent: PretrainedConfig) -> Any:
    """The child as a model of its parent's own class."""
    layers = plain_layers(child)
    attention, ffn = (placed.subblock for placed in subblocks_of(child)[:2])
    config = resized(parent, _places_of(child, layers), attention.number, ffn.number)
    config.tie_word_embeddings, config.use_cache = child.config.tie_word_embeddings, True
    weights = tensors_of(child, layers)
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=child.dtype, trust_remote_code=False)
    model.load_state_dict(family_names(config.model_type, weights), strict=True, assign=True)
    model.tie_weights()
    return model
