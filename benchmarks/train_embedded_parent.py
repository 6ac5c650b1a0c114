"""Train the small Llama that ships as `nas/embedded/parent`, from nothing but this Python's standard library.

    python benchmarks/train_embedded_parent.py --out nas/embedded/parent --steps 1100

Trains a byte-level BPE tokenizer and a 3.9M-parameter Llama (10 layers, grouped-query attention, tied embeddings), then
measures what the model card states: held-out loss beside an interpolated trigram model's, and what removing each
subblock costs. Two CPU cores need about an hour; a GPU is used where there is one.
"""

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nas.text.standard_library import stdlib_files

VOCABULARY, CONTEXT = 2048, 256
BOS = "<|bos|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one row of ids, each text opened by the BOS token."""
    ids: list[int] = []
    for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids.append(tokenizer.bos_token_id)
        ids.extend(encoded)
    return torch.tensor(ids, dtype=torch.int32)


def embedded_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, tie_word_embeddings=True, hidden_size=192, intermediate_size=432, num_hidden_layers=10,
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


def batch_of(stream: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(stream) - CONTEXT - 1, (size,), generator=generator)
    return torch.stack([stream[s : s + CONTEXT + 1] for s in starts.tolist()]).long()


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, stream: torch.Tensor, windows: int = 64) -> float:
    step = (len(stream) - CONTEXT - 1) // windows
    ids = torch.stack([stream[i * step : i * step + CONTEXT + 1] for i in range(windows)]).long()
    ids = ids.to(model.device)
    return float(np.mean([loss_of(model, chunk).item() for chunk in ids.split(32)]))


def trigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Held-out nats per token of a trigram model interpolated with bigrams, unigrams and the uniform (Jelinek-Mercer),
    its three weights fitted on the last tenth of the training stream."""
    fit, tune = np.split(train.astype(np.int64), [len(train) * 9 // 10])
    uni, bi, tri = (
        Counter(zip(*(fit[k : len(fit) - n + 1 + k].tolist() for k in range(n)), strict=True)) for n in (1, 2, 3)
    )
    bi_context, tri_context = (Counter(zip(*(fit[k : k - n].tolist() for k in range(n)), strict=True)) for n in (1, 2))

    def components(ids: np.ndarray) -> np.ndarray:
        rows = []
        for a, b, c in zip(ids[:-2].tolist(), ids[1:-1].tolist(), ids[2:].tolist(), strict=True):
            rows.append((
                tri[a, b, c] / tri_context[a, b] if (a, b) in tri_context else 0.0,
                bi[b, c] / bi_context[b,] if (b,) in bi_context else 0.0,
                uni[(c,)] / len(fit),
                1 / VOCABULARY,
            ))  # fmt: skip
        return np.array(rows)

    probabilities, weights = components(tune), np.full(4, 0.25)
    for _ in range(30):  # expectation maximisation of the interpolation weights
        shares = probabilities * weights
        weights = (shares / shares.sum(1, keepdims=True)).mean(0)
    return float(-np.log(components(heldout) @ weights).mean())


@torch.no_grad()
def removal_costs(model: LlamaForCausalLM, stream: torch.Tensor) -> list[tuple[float, float]]:
    """Per layer: how much the held-out loss rises when its attention, its FFN, adds nothing."""
    base, costs = heldout_loss(model, stream), []
    for layer in model.model.layers:
        rises = []
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            kept = projection.weight.clone()
            projection.weight.zero_()
            rises.append(heldout_loss(model, stream) - base)
            projection.weight.copy_(kept)
        costs.append((rises[0], rises[1]))
    return costs


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, heldout: torch.Tensor, steps: int, batch: int, lr: float
) -> None:
    device = model.device
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    warmup, generator, started = 50, torch.Generator().manual_seed(0), time.time()
    for step in range(steps):
        scale = min((step + 1) / warmup, 1.0) * (1 - step / steps) ** 0.8
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = lr * scale
        loss = loss_of(model, batch_of(stream, batch, generator).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}")
        if step % 20 == 0 or step == steps - 1:
            line = f"step {step:5d}  train loss {loss.item():.3f}  {time.time() - started:6.0f} s"
            if step % 200 == 0 or step == steps - 1:
                line += f"  held-out loss {heldout_loss(model, heldout):.4f}"
            print(line, flush=True)


def card(steps: int, tokens: int, loss: float, trigram: float, removal: list[tuple[float, float]]) -> str:
    rows = "\n".join(f"| {i} | {a:.3f} | {f:.3f} |" for i, (a, f) in enumerate(removal))
    return f"""---
license: apache-2.0
---
# The embedded parent of puzzle-nas

A 3.9M-parameter Llama (10 layers, hidden 192, FFN 432, 6 heads of 32 with 2 KV heads, 2048 byte-level BPE tokens,
context {CONTEXT}, tied embeddings, bfloat16), trained from scratch by `benchmarks/train_embedded_parent.py` on the
Python standard library's own sources and documentation ({tokens:,} tokens; {steps:,} steps of 8,192). It exists so that
a whole architecture search can run on a machine with nothing but Python. It is of no other use.

Held-out files (a tenth of the standard library, never trained on): loss {loss:.3f} nats per token, perplexity
{math.exp(loss):.2f}; an interpolated trigram model on the same tokens: {trigram:.3f}, perplexity
{math.exp(trigram):.1f}.

Rise of the held-out loss when one subblock is removed:

| layer | attention | FFN |
|---|---|---|
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=32, help="sequences of 256 tokens per step")
    parser.add_argument("--lr", type=float, default=4e-3)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train_texts = [p.read_text("utf-8", errors="replace") for p in stdlib_files("train")]
    heldout_texts = [p.read_text("utf-8", errors="replace") for p in stdlib_files("heldout")]
    tokenizer = train_tokenizer(train_texts)
    stream, heldout = token_stream(tokenizer, train_texts), token_stream(tokenizer, heldout_texts)
    print(f"{len(stream):,} training tokens, {len(heldout):,} held-out tokens", flush=True)

    model = LlamaForCausalLM(embedded_config())
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{model.num_parameters():,} parameters on {model.device}", flush=True)
    train(model, stream, heldout, arguments.steps, arguments.batch, arguments.lr)

    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    model.float()
    loss, removal = heldout_loss(model, heldout), removal_costs(model, heldout)
    trigram = trigram_loss(stream.numpy(), heldout.numpy())
    (arguments.out / "README.md").write_text(card(arguments.steps, len(stream), loss, trigram, removal))
    print(json.dumps({"heldout_loss": loss, "trigram_loss": trigram, "removal": removal}, indent=1))


if __name__ == "__main__":
    main()
