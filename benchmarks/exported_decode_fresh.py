"""An exported child, loaded as its model card says, timed for `exported_decode.py`. Run as a script by that.

`python -I exported_decode_fresh.py FOLDER BATCH PROMPT GENERATED THREADS DEVICE`: reads a line, `step REPEATS`,
`generate` or `reads`, and answers with a line of JSON, seconds or what each forward read. This project cannot be
imported here: only what lies in the folder makes the model run.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import CacheLayerMixin

_CODE = re.compile(r"^## Loading$.*?^```python$(.*?)^```$", re.MULTILINE | re.DOTALL)


class Timed:
    """A model with a cache of the prompt and half the generated tokens, as a search times it."""

    def __init__(self, model: Any, batch: int, prompt: int, generated: int):
        self._model, self._generated = model, generated
        seeded = torch.Generator().manual_seed(0)
        size = (batch, prompt + generated // 2)
        ids_BT = torch.randint(model.config.vocab_size, size, generator=seeded).to(model.device)
        self._prompt_BT, self._next_B1 = ids_BT[:, :prompt].contiguous(), ids_BT[:, :1].contiguous()
        cache = DynamicCache(config=model.config)
        keeps = any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)
        self._cache = cache if keeps else DynamicCache()
        # Nothing but how many tokens, whatever the parent's settings ask for.
        model.generation_config = GenerationConfig(use_cache=model.generation_config.use_cache, pad_token_id=0)
        model(input_ids=ids_BT, cache=self._cache, use_cache=True, logits_to_keep=1)
        self.step(3)

    def step(self, repeats: int) -> float:
        """Seconds of one step on the cache, which is as it was afterwards; the median of the repeats."""
        layers = [layer for layer in self._cache.layers if isinstance(layer, CacheLayerMixin)]
        seconds = []
        for _ in range(repeats):
            before = [dict(vars(layer)) for layer in layers]
            self._wait()
            started = perf_counter()
            self._model(input_ids=self._next_B1, cache=self._cache, use_cache=True, logits_to_keep=1)
            self._wait()
            seconds.append(perf_counter() - started)
            for layer, state in zip(layers, before, strict=True):
                vars(layer).update(state)
        return median(seconds)

    def generate(self) -> float:
        """Seconds of a whole `generate`."""
        self._wait()
        started = perf_counter()
        self._model.generate(self._prompt_BT, max_new_tokens=self._generated)
        self._wait()
        return perf_counter() - started

    def reads(self) -> list[int]:
        """The tokens of a sequence that each forward of a `generate` of nine tokens reads: a scenario may ask for one
        token alone. Within the positions that the scenario needs."""
        seen: list[int] = []
        embedding = self._model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
        self._model.generate(self._prompt_BT[:, : max(1, self._prompt_BT.shape[1] - 8)], max_new_tokens=9)
        hook.remove()
        return seen

    def _wait(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)


def main() -> None:
    folder, *numbers, device = sys.argv[1:]
    batch, prompt, generated, threads = map(int, numbers)
    for package in ("nas", "blocklib", "cost_models", "solvers", "db"):
        sys.modules[package] = None  # type: ignore[assignment]
    torch.set_num_threads(threads)
    *_, code = _CODE.findall(Path(folder, "README.md").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"folder": folder}
    exec(code, names)
    with torch.inference_mode():
        timed = Timed(names["model"].to(device), batch, prompt, generated)
        for line in iter(sys.stdin.readline, ""):
            asked, *repeats = line.split()
            print(json.dumps(getattr(timed, asked)(*map(int, repeats))), flush=True)


if __name__ == "__main__":
    main()
