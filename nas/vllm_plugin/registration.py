"""A plugin of vLLM, found by its entry point `vllm.general_plugins`: with it vLLM runs every child that the `hf` export
writes, also those with layers that have no attention.

The folder brings its own configuration class, so start vLLM with `--trust-remote-code`. Nothing else in this project
imports this room, and registering imports nothing but vLLM.
"""

ARCHITECTURE = "PuzzleNasForCausalLM"
"""The name in the `architectures` of an exported config.json."""


def register() -> None:
    """Tell vLLM which class runs the architecture. vLLM calls it in each of its processes, perhaps several times."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "nas.vllm_plugin.model:ServedForCausalLM")
