"""Greedy continuations of a folder in vLLM, run as a script where vLLM is installed.

`python vllm_answers.py FOLDER QUESTION ANSWER`; the last two are JSON files. A question holds `prompts`, lists of token
ids, and `settings` of `vllm.LLM`. An answer is the class that ran, and the new tokens of each prompt with the
log-probabilities of the five likeliest, for all prompts in a batch and for the first one alone.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = 24


def answer(folder: str, question: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    usual = {"dtype": "float32", "max_model_len": 48, "max_num_seqs": 4, "skip_tokenizer_init": True}
    llm = LLM(folder, trust_remote_code=True, **usual | question["settings"])
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=5, detokenize=False)

    def continued(prompts: list[list[int]]) -> list[dict[str, Any]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = [output.outputs[0] for output in llm.generate(asked, greedy, use_tqdm=False)]
        return [
            {
                "tokens": list(output.token_ids),
                "logprobs": [{token: one.logprob for token, one in step.items()} for step in output.logprobs],
            }
            for output in outputs
        ]

    made_by = llm.apply_model(lambda model: type(model).__name__)
    return {"made_by": made_by[0], "batch": continued(question["prompts"]), "alone": continued(question["prompts"][:1])}


def main() -> None:
    folder, question, answered = sys.argv[1:]
    # In one process, on any machine, with nothing sent anywhere.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # `apply_model` sends a function.
    Path(answered).write_text(json.dumps(answer(folder, json.loads(Path(question).read_text()))))


if __name__ == "__main__":
    main()
