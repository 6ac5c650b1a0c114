"""Load a GGUF file in llama.cpp and report what it computes. This runs as a script in a process of its own.

`python -I run_llama_cpp.py FILE QUESTION ANSWER`; the last two are JSON files. The engine is the server of the package
`xllamacpp`, asked over HTTP. Two of them in one process slow each other down, and a crash takes the process with it;
so each file gets a process. This file only reports; `nas/export/verify_gguf.py` decides.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

_WAIT_S = 600.0


def answer(file: str, question: dict[str, Any]) -> dict[str, Any]:
    """To `prompts` (ids): the most likely `best` next tokens and their log-probabilities; to the first `greedy` of them
    the greedy tokens, each alone and all as a batch; to `texts`: their ids, without special tokens and with."""
    server = _server(file, question)
    prompts, started = question["prompts"], question["prompts"][: question["greedy"]]
    return {
        "likely": [_likely(server, prompt, question) for prompt in prompts],
        "alone": [_greedy(server, [prompt], question["new_tokens"])[0] for prompt in started],
        "batch": _greedy(server, started, question["new_tokens"]),
        "ids": [_ids(server, text, special=False) for text in question["texts"]],
        "ids_with_special": [_ids(server, text, special=True) for text in question["texts"]],
    }


def _server(file: str, question: dict[str, Any]) -> Any:
    import xllamacpp  # type: ignore[import-untyped]

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_parallel, settings.kv_unified = question["context"], question["greedy"], True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = question["threads"]
    settings.warmup = settings.cache_prompt = settings.fit_params = False
    settings.cache_ram_mib, settings.n_gpu_layers, settings.verbosity = 0, 0, question["verbosity"]
    if question["exact"]:
        # Half precision keys and values, and flash attention's, cost three digits.
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def _likely(server: Any, prompt: list[int], question: dict[str, Any]) -> list[tuple[int, float]]:
    # The server reports probabilities, which are those before any bias, only once a character is whole. So the token
    # is forced to be a letter.
    forced = {"n_predict": 1, "n_probs": question["best"], "logit_bias": [[question["letter"], 1e9]]}
    (step,) = _post(server, "/completion", _asked(prompt) | forced)["completion_probabilities"]
    return [(likely["id"], likely["logprob"]) for likely in step["top_logprobs"]]


def _greedy(server: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    wanted = {"n_predict": count, "return_tokens": True}
    if len(prompts) == 1:
        return [_post(server, "/completion", _asked(prompts[0]) | wanted)["tokens"]]
    found = _post(server, "/completion", _asked(prompts) | wanted)
    return [one["tokens"] for one in sorted(found, key=lambda one: one["index"])]


def _ids(server: Any, text: str, special: bool) -> list[int]:
    wanted = {"content": text, "add_special": special, "parse_special": True}
    ids: list[int] = _post(server, "/tokenize", wanted)["tokens"]
    return ids


def _asked(prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}


def _post(server: Any, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_WAIT_S) as reply:
        return json.load(reply)


def main() -> None:
    file, question, answer_file = sys.argv[1:]
    found = answer(file, json.loads(Path(question).read_text(encoding="utf-8")))
    Path(answer_file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
