"""Answers of llama.cpp's server on a GGUF file. This file only reports; `verify_gguf.py` decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cost_models.engines.llama_server import LlamaServer


@dataclass(frozen=True)
class LlamaCppAnswers:
    """To prompts: the most likely next tokens, each with its log-probability. To the first of them: the greedy tokens,
    each alone and all as a batch. To texts: their ids, without special tokens and with."""

    likely: list[list[tuple[int, float | None]]]
    alone: list[list[int]]
    batch: list[list[int]]
    ids: list[list[int]]
    ids_with_special: list[list[int]]


def likely(server: LlamaServer, prompt: Sequence[int], best: int, letter: int) -> list[tuple[int, float | None]]:
    """The `best` most likely next tokens. `letter` is a token that is a whole character."""
    # The server reports probabilities, which are those before any bias, only once a character is whole. So the token
    # is forced to be a letter.
    forced = {"n_predict": 1, "n_probs": best, "logit_bias": [[letter, 1e9]]}
    (step,) = server.ask("/completion", _asked(prompt) | forced)["completion_probabilities"]
    return [(token["id"], token["logprob"]) for token in step["top_logprobs"]]


def greedy(server: LlamaServer, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The greedy tokens after all prompts, which run together."""
    wanted = {"n_predict": count, "return_tokens": True}
    if len(prompts) == 1:
        return [server.ask("/completion", _asked(prompts[0]) | wanted)["tokens"]]
    found = server.ask("/completion", _asked(prompts) | wanted)
    return [one["tokens"] for one in sorted(found, key=lambda one: one["index"])]


def ids_of(server: LlamaServer, text: str, special: bool) -> list[int]:
    wanted = {"content": text, "add_special": special, "parse_special": True}
    ids: list[int] = server.ask("/tokenize", wanted)["tokens"]
    return ids


def _asked(prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
