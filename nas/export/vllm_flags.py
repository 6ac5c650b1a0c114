"""The way to start vLLM on an `hf` export: with this project's plugin or without, and with which flags. Found with vLLM
0.32 (docs/exports.md). This file runs no engine.
"""

from blocklib.kinds import FFN
from blocklib.model import PuzzleNasConfig, layer_type

PLUGIN = "the plugin of puzzle-nas (`pip install --no-deps puzzle-nas` beside vLLM)"


def vllm_limits(config: PuzzleNasConfig) -> tuple[str, ...]:
    """Sentences on what stock vLLM lacks for a child of this configuration; none where it runs the folder as it is."""
    missing = _missing(config)
    if not missing:
        return ()
    remedy = f"with {PLUGIN} it does; or export as decilm, where that carries the child"
    return (f"vLLM alone does not run {missing}: {remedy}.",)


def vllm_flags(config: PuzzleNasConfig) -> tuple[str, ...]:
    """The flags that vLLM's command line needs for the folder."""
    flags = ["--trust-remote-code"]
    layers = list(config.per_layer_config)
    if _is_sparse(config):
        flags.append("--enforce-eager")
    if all(layer_type(layer) == "moe" for layer in layers):
        flags.append("--no-enable-prefix-caching")
    if len({layer.sliding_window for layer in layers}) > 1:
        flags.append("""--hf-overrides '{"allow_global_per_layer_attribute_access": true}'""")
    return tuple(flags)


def serving(config: PuzzleNasConfig) -> str:
    """A card's section on serving with vLLM, in Markdown."""
    flags = " ".join(vllm_flags(config))
    needs = f"In vLLM, with {PLUGIN}" if _missing(config) else "In vLLM"
    return f"\n{needs}:\n{serving_lines(flags)}"


def serving_lines(flags: str) -> str:
    """The commands that serve a folder with vLLM, in Markdown."""
    return f"""
```
vllm serve FOLDER {flags}
python -m vllm.entrypoints.openai.api_server --model FOLDER {flags}    # the same, where that command fails
```
"""


def _missing(config: PuzzleNasConfig) -> str:
    """The parts of the child that vLLM's backend for transformers models does not run."""
    layers = list(config.per_layer_config)
    without = [str(index) for index, layer in enumerate(layers) if layer_type(layer) == "moe"]
    parts = []
    if without:
        parts.append(f"layers without attention (here {', '.join(without)})")
    if len({layer.sliding_window for layer in layers}) > 1:
        parts.append("windows that differ from layer to layer")
    return ", nor ".join(parts)


def _is_sparse(config: PuzzleNasConfig) -> bool:
    layers = [layer for layer in config.per_layer_config if "mlp" not in getattr(layer, "skip", [])]
    return any(FFN[layer.ffn_kind].is_sparse for layer in layers)
