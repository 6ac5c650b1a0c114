"""The fields in which an exported configuration may differ from its parent's, each with its reason. After the export is
written, its files are compared with the parent's. This file knows no weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from blocklib.loading import reading
from nas.errors import ExportMismatchError
from nas.export.generation import Carried, generation_of

CHANGED = {
    "_name_or_path": "where it was loaded from; no part of a model",
    "architecture": "the child's blocks, in this project's spelling",
    "architectures": "the class that runs it",
    "attention_bias": "set apart for the inputs and the output: qkv_bias, o_bias",
    "attention_kind": "set for each layer",
    "attention_scale": "what the parent's class computes",
    "auto_map": "the class that runs it",
    "chunk_size_feed_forward": "no layer of ours computes in chunks",
    "dtype": "what the scenario serves in",
    "ffn_kind": "set for each layer",
    "ffn_options": "set for each layer",
    "gated_ffn": "what the parent's class computes",
    "id2label": "a classifier's head has it; a language model has none",
    "is_encoder_decoder": "a decoder alone",
    "joint_qk_norm": "what the parent's class computes",
    "label2id": "a classifier's head has it; a language model has none",
    "least_transformers": "the oldest version that runs the folder's code",
    "layer_norm": "what the parent's class computes",
    "layer_types": "what the cache keeps of each layer",
    "learned_positions": "what the parent's class computes",
    "model_type": "the class that runs it",
    "local": "set for each layer",
    "local_layers": "those of the parent that are of the type sliding_attention",
    "local_window": "the parent's sliding_window",
    "norm_placement": "what the parent's class computes",
    "num_hidden_layers": "one layer for each block",
    "o_bias": "what the parent's class computes",
    "output_attentions": "for a caller to ask for",
    "output_hidden_states": "for a caller to ask for",
    "parallel": "set for each layer",
    "per_layer_config": "the child's blocks",
    "pretraining_tp": "nothing computes with it",
    "problem_type": "a classifier's head has it; a language model has none",
    "qk_norm": "what the parent's class computes",
    "qkv_bias": "what the parent's class computes",
    "return_dict": "for a caller to ask for",
    "rotary": "set for each layer",
    "rounds_embedding_multiplier": "what the parent's class computes",
    "sliding_window": "set for each layer",
    "tie_word_embeddings": "what the checkpoint holds, which its configuration may not know",
    "transformers_version": "what wrote it",
    "unrotated_layers": "what the parent's class computes",
    "use_cache": "on: what was timed reads one token a step",
    "zero_centred_norms": "what the parent's class computes",
}
"""Fields of config.json in which any child may differ from its parent."""

TRANSLATED = {
    "attention_dropout": "Llama's name for it",
    "head_dim": "the hidden size over the heads, said outright",
    "embedding_multiplier": "1: none, or what the parent's class computes",
    "hidden_act": "Llama's name for it",
    "intermediate_size": "Llama's name for it",
    "local_rope_parameters": "none: no layer of the parent is local",
    "logits_scaling": "1: none",
    "mlp_bias": "what the parent's class computes",
    "num_key_value_heads": "as many as there are heads, said outright",
    "residual_multiplier": "1: none",
    "rms_norm_eps": "Llama's name for it, of layer norms too",
    "rope_parameters": "Llama's, not used where positions are learned",
}
"""Fields in which a child may differ if the parent's family has no such field, or leaves it empty."""

LEFT_BEHIND = {
    "_sliding_window_pattern": "local_layers",
    "activation_function": "hidden_act",
    "attention_multiplier": "attention_scale",
    "attention_layers": "sliding windows are set for each layer",
    "attention_types": "sliding windows are set for each layer",
    "attn_pdrop": "dropout, of training alone",
    "add_cross_attention": "a decoder alone",
    "classifier_dropout": "dropout, of training alone",
    "embd_pdrop": "dropout, of training alone",
    "embed_dropout": "dropout, of training alone",
    "layer_norm_epsilon": "rms_norm_eps",
    "max_window_layers": "sliding windows are set for each layer",
    "n_ctx": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "original_max_position_embeddings": "rope_parameters, where positions are stretched",
    "reorder_and_upcast_attn": "everything is computed in the served type",
    "resid_dropout": "dropout, of training alone",
    "resid_pdrop": "dropout, of training alone",
    "rope_scaling": "rope_parameters",
    "rope_theta": "rope_parameters",
    "no_rope_layer_interval": "unrotated_layers",
    "no_rope_layers": "unrotated_layers",
    "hidden_activation": "hidden_act",
    "query_pre_attn_scalar": "attention_scale",
    "use_bidirectional_attention": "a causal decoder",
    "scale_attn_by_inverse_layer_idx": "attention_scale",
    "scale_attn_weights": "attention_scale",
    "summary_activation": "a head for summaries has it; a language model has none",
    "summary_first_dropout": "a head for summaries has it; a language model has none",
    "summary_proj_to_labels": "a head for summaries has it; a language model has none",
    "summary_type": "a head for summaries has it; a language model has none",
    "summary_use_proj": "a head for summaries has it; a language model has none",
    "task_specific_params": "for a caller to ask for",
    "torch_dtype": "dtype",
    "use_sliding_window": "sliding windows are set for each layer",
    "window_size": "sliding windows are set for each layer",
}
"""Fields that only the parent has, and their replacements or the reason why they are left out."""

GENERATION_CHANGED = {
    "_from_model_config": "where it was read from",
    "transformers_version": "what wrote it",
    "use_cache": "never off: what was timed reads one token a step",
}
"""Fields of generation_config.json in which any child may differ from its parent."""

_ABSENT = object()


@dataclass(frozen=True)
class ParentSettings:
    """The parent's configuration, its generation settings as far as a child can keep them, and the folder with its
    files; None where it has no folder here."""

    config: PretrainedConfig
    generation: Carried
    folder: Path | None = None


def settings_of(checkpoint: str) -> ParentSettings:
    """Read a checkpoint, a folder or a hub id, and run no code of it. Raises CheckpointError if that fails."""
    with reading(Path(checkpoint, "config.json"), "correct it"):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    folder = Path(checkpoint)
    return ParentSettings(config, generation_of(checkpoint), folder if folder.is_dir() else None)


def check_settings(
    folder: Path, written: PretrainedConfig, parent: ParentSettings, changed: Mapping[str, str]
) -> tuple[str, ...]:
    """Compare the settings of an exported folder with its parent's; `written` is the folder's configuration, read back.
    `changed` holds the fields that differ because of the format, with reasons. Returns notes on fields that are not
    carried over. Raises ExportMismatchError, naming the field, if a field differs that is not on these lists.
    """
    check_generation(folder, parent.generation.settings)
    return parent.generation.notes + check_config(written, parent.config, changed)


def check_config(written: PretrainedConfig, parent: PretrainedConfig, changed: Mapping[str, str]) -> tuple[str, ...]:
    """Compare a configuration that was written and read back with the parent's. `changed`, the result and the errors
    are as for `check_settings`.
    """
    mine, theirs = _fields(written), _fields(parent)
    if mine.get("use_cache") is not True:
        raise ExportMismatchError("config.json: use_cache is off, so that every step would read the whole text again")
    for name, value in mine.items():
        own = theirs.get(name, _ABSENT)
        on_purpose = name in CHANGED or name in changed or (own in (None, _ABSENT) and name in TRANSLATED)
        if value != own and not on_purpose:
            told = "has none" if own is _ABSENT else f"has {own!r}"
            raise ExportMismatchError(
                f"config.json: {name} is {value!r}, but the parent's config.json {told}; they must agree"
            )
    expected = CHANGED | TRANSLATED | LEFT_BEHIND | dict(changed)
    lost = sorted(name for name in theirs.keys() - mine.keys() - expected.keys() if theirs[name] is not None)
    return (f"The parent's config.json also has {', '.join(lost)}; this is not carried over.",) if lost else ()


def check_generation(folder: Path, settings: GenerationConfig) -> None:
    """Raise ExportMismatchError if the folder's generation settings, read back, are not `settings`."""
    written, asked = (_fields(each) for each in (GenerationConfig.from_pretrained(folder), settings))
    if written.get("use_cache") is False:
        raise ExportMismatchError("generation_config.json: use_cache is off, so that every step would read all again")
    for name in sorted(written.keys() | asked.keys()):
        if written.get(name) != asked.get(name) and name not in GENERATION_CHANGED:
            raise ExportMismatchError(
                f"generation_config.json: {name} is {written.get(name)!r}, the parent's {asked.get(name)!r}"
            )


def _fields(settings: PretrainedConfig | GenerationConfig) -> dict[str, Any]:
    """The fields as JSON values, under the names that transformers uses for every family."""
    renamed = {own: name for name, own in getattr(settings, "attribute_map", {}).items()}
    fields: dict[str, Any] = json.loads(json.dumps(settings.to_dict(), default=str))
    rope = fields.get("rope_parameters")
    if rope and "full_attention" in rope:
        fields["local_rope_parameters"] = rope.get("sliding_attention")
        fields["rope_parameters"] = rope = rope["full_attention"]
    if rope and rope.get("partial_rotary_factor") == 1:  # As without it: whole heads are rotated.
        del rope["partial_rotary_factor"]
    return {renamed.get(name, name): value for name, value in fields.items()}
