"""A model in vLLM, in a process of its own. This runs as a script, and needs vLLM alone.

`python vllm_worker.py SETTINGS`, which is JSON: `device` (cpu or cuda), `folder` (a checkpoint, or the config.json of a
Llama), `blocks` (the sizes of each layer that replace that Llama's, as DeciLM has them; null: none do) and `arguments`
(of vLLM's `LLM`). Prints a line when it is ready. After that, each line of its standard input is a question,
`{"prompts": [[ids]], "tokens": 8}`, and each line of its output the answer of `timed`. Ends with its standard input,
and before it is ready where vLLM runs on another device.
"""

import json
import os
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any


def check_device(asked: str) -> None:
    """End, and say why, where vLLM picks another kind of device: that depends on its build and on the machine."""
    from vllm.platforms import current_platform

    found = current_platform.device_type
    if found != asked:
        sys.exit(
            f"scenario.device is {asked}, and the vLLM of {sys.executable} runs on {found or 'no device'} here; give "
            f"that one, or let NAS_VLLM_PYTHON name a Python whose vLLM runs on {asked}"
        )


def with_blocks(config: Any, blocks: list[dict[str, dict[str, Any]]]) -> Any:
    """The configuration of a Llama as that of a DeciLM, whose layers differ."""
    config.architectures = ["DeciLMForCausalLM"]
    config.block_configs = [
        SimpleNamespace(**{part: SimpleNamespace(**sizes) for part, sizes in block.items()}) for block in blocks
    ]
    return config


def timed(llm: Any, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    """Generate so many tokens after each prompt, all together.

    `prefill_s` until every sequence had its first token, and `decode_s` of all steps after it, by vLLM's own clock;
    `passes` in which the prompts entered; `preemptions` of sequences that the cache did not hold; `tokens` of the
    shortest answer.
    """
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=tokens, detokenize=False)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
    times = [one.metrics for one in found]
    first = max(time.first_token_ts for time in times)
    return {
        "prefill_s": first - min(time.scheduled_ts for time in times),
        "decode_s": max(time.last_token_ts for time in times) - first,
        # One scheduling of several sequences has one time.
        "passes": len({time.scheduled_ts for time in times}),
        "preemptions": sum(time.num_preemptions for time in times),
        "tokens": min(len(one.outputs[0].token_ids) for one in found),
    }


def main() -> None:
    settings = json.loads(sys.argv[1])
    # Libraries print to standard output: from here on, that is the standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    check_device(settings["device"])
    from vllm import LLM

    changed = partial(with_blocks, blocks=settings["blocks"]) if settings["blocks"] else None
    llm = LLM(settings["folder"], **{"hf_overrides": changed} | settings["arguments"])
    print("ready", file=answers)
    for line in sys.stdin:
        print(json.dumps(timed(llm, **json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
