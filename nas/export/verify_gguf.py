"""Whether a GGUF file, in llama.cpp in a process of its own, is the child: its probabilities, its tokens, its ids.

Two files are compared. One in f32, with keys and values in f32, shows a wrong architecture, name, order of rows or
rotary scaling by a difference far above rounding. At any other precision llama.cpp rounds what goes into a matrix as
well as the matrix, so the file that was asked for is held against the child with its weights rounded, by the mean KL
divergence.
"""

import importlib.util
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf import TokenType
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blocklib.formats.gguf_vocabulary import Vocabulary
from blocklib.model import PuzzleNasForCausalLM
from cost_models.engines.llama_server import llama_server
from cost_models.errors import EngineStoppedError
from nas.errors import ExportMismatchError, MissingFileError
from nas.export.gguf_tokenizer import normalisation_of
from nas.export.llama_cpp_answers import LlamaCppAnswers, greedy, ids_of, likely
from nas.export.mixed_text import mixed_text

EXACT = 1e-3
"""Largest difference of two log-probabilities that counts as rounding in f32. (SmolLM2, 30 layers: 2e-4.)"""
CLOSE = 0.2
"""Largest mean KL divergence, in nats, between the engine and the child with its weights rounded. Rounding of what
enters the matrices makes 2e-5 at f16 and 4e-3 at q8_0 for SmolLM2, and 4e-2 for a child that was never trained."""
LIKELY = 3.0
"""The most nats by which a greedy token of the delivered file may be less likely than the child's own, however far the
file is from the child. (SmolLM2: 0.3 at q8_0. A child of it that was never trained: 0.6 at q4_0, 1.9 at q2_k.)"""

_NEW_TOKENS = 24
_LENGTHS = (16, 16, 1, 5, 40)
"""Tokens of the prompts."""
_CONTINUED = 2
_BEST = 512
_CONTEXT = 256


@dataclass(frozen=True)
class Closeness:
    """How far the engine is from the child: the largest difference of log-probabilities among the most likely tokens,
    and the mean KL divergence over them and a rest, in nats."""

    difference: float
    kl: float


@dataclass(frozen=True)
class LlamaCppRun:
    """llama.cpp on one file. `exact`: keys and values in f32, as the comparison of a file in f32 needs."""

    file: Path
    exact: bool

    def ask(self, vocabulary: Vocabulary, prompts: list[list[int]], texts: tuple[str, ...] = ()) -> LlamaCppAnswers:
        """Raises ExportMismatchError where llama.cpp fails, MissingFileError where it is not installed."""
        check_llama_cpp()
        settings = {
            "threads": torch.get_num_threads(),
            "sequences": _CONTINUED,
            "context_tokens": _CONTEXT,
            "cache": "f32" if self.exact else "f16",
            # Flash attention costs three digits.
            "exact": self.exact,
        }
        best, letter, continued = min(_BEST, len(vocabulary.tokens)), _letter(vocabulary), prompts[:_CONTINUED]
        try:
            with llama_server(file=str(self.file.absolute()), **settings) as server:
                return LlamaCppAnswers(
                    likely=[likely(server, prompt, best, letter) for prompt in prompts],
                    alone=[greedy(server, [prompt], _NEW_TOKENS)[0] for prompt in continued],
                    batch=greedy(server, continued, _NEW_TOKENS),
                    ids=[ids_of(server, text, special=False) for text in texts],
                    ids_with_special=[ids_of(server, text, special=True) for text in texts],
                )
        except EngineStoppedError as error:
            raise ExportMismatchError(f"llama.cpp does not load and run the file: {error}") from error


def check_llama_cpp() -> None:
    """Raise MissingFileError, with what to type, where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingFileError(
            "a GGUF export is loaded in llama.cpp and compared before it is kept, and llama.cpp is not installed: "
            "pip install 'puzzle-nas[llama-cpp]'"
        )


def compare_exactly(file: Path, child: PuzzleNasForCausalLM, vocabulary: Vocabulary) -> Closeness:
    """A file in f32 with the child in float32. Raises ExportMismatchError where they differ by more than rounding."""
    prompts = _prompts(child)
    answer = LlamaCppRun(file, exact=True).ask(vocabulary, prompts)
    found = _agreement(child, prompts, answer)
    if not found.difference <= EXACT:
        raise ExportMismatchError(
            f"llama.cpp gives log-probabilities up to {found.difference:.3g} away from the child's; at most {EXACT} is "
            "allowed"
        )
    _check_greedy(child, prompts, answer, vocabulary, EXACT)
    return found


def compare_closely(
    file: Path, rounded: PuzzleNasForCausalLM, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase | None
) -> Closeness:
    """The file as it is delivered, with the child in float32 whose weights are rounded as the file's.

    Raises ExportMismatchError where their mean KL exceeds what rounding does, where a greedy token is less likely than
    the child's own by more than rounding does, or where the ids of a text are not the tokenizer's.
    """
    prompts, texts = _prompts(rounded), _texts(tokenizer)
    if tokenizer is not None:
        prompts = _text_prompts(tokenizer, texts, prompts)
    answer = LlamaCppRun(file, exact=False).ask(vocabulary, prompts, texts)
    found = _agreement(rounded, prompts, answer)
    if not found.kl <= CLOSE:
        raise ExportMismatchError(
            f"llama.cpp is {found.kl:.3g} nats away from the child with the same weights; at most {CLOSE} is allowed"
        )
    _check_greedy(rounded, prompts, answer, vocabulary, max(EXACT, min(4 * found.difference, LIKELY)))
    if tokenizer is not None:
        _check_ids(tokenizer, texts, answer)
    return found


def _prompts(child: PuzzleNasForCausalLM) -> list[list[int]]:
    """The same for every run; none longer than the model's positions allow."""
    most = int(child.config.max_position_embeddings) - 1
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(child.config.vocab_size, (min(length, most),), generator=generator).tolist()
        for length in _LENGTHS
    ]


def _text_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], prompts: list[list[int]]
) -> list[list[int]]:
    """Prompts of real text, as long as `prompts`. Rounding moves a model further where it reads what it never saw."""
    found = []
    for text, prompt in zip(texts, prompts, strict=False):
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        found.append(ids[: len(prompt)])
    return found


def _letter(vocabulary: Vocabulary) -> int:
    """A token that is a whole character by itself."""
    for index, (token, type) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if type == TokenType.NORMAL and token.isascii() and token.isalnum():
            return index
    raise ExportMismatchError("the vocabulary has no token of plain letters, which the comparison needs")


@torch.no_grad()
def _log_probabilities(child: PuzzleNasForCausalLM, ids: list[int]) -> Tensor:
    """[T, vocabulary]"""
    found: Tensor = torch.log_softmax(child(torch.tensor([ids]), use_cache=False).logits[0].float(), -1)
    return found


def _agreement(child: PuzzleNasForCausalLM, prompts: list[list[int]], answer: LlamaCppAnswers) -> Closeness:
    differences, divergences = [], []
    for prompt, listed in zip(prompts, answer.likely, strict=True):
        own_V = _log_probabilities(child, prompt)[-1]
        ids = torch.tensor([index for index, _ in listed])
        theirs = torch.tensor([float("nan") if value is None else value for _, value in listed])
        differences.append((own_V[ids] - theirs).abs().max().item())
        divergences.append(_kl(own_V[ids], theirs))
    worst = torch.tensor(differences).max().item()
    return Closeness(worst, sum(divergences) / len(divergences))


def _kl(own: Tensor, theirs: Tensor) -> float:
    """KL(own | theirs) over these tokens and all others as one."""

    def with_rest(listed: Tensor) -> Tensor:
        rest = (1 - listed.double().exp().sum()).clamp(min=1e-9).log()
        return torch.cat([listed.double(), rest[None]])

    own, theirs = with_rest(own), with_rest(theirs)
    return float((own.exp() * (own - theirs)).sum())


def _check_greedy(
    child: PuzzleNasForCausalLM,
    prompts: list[list[int]],
    answer: LlamaCppAnswers,
    vocabulary: Vocabulary,
    slack: float,
) -> None:
    """Every token must be the child's most likely after those before it, or as likely but for rounding. Here the engine
    never takes tokens that end a text."""
    ends = [index for index, type in enumerate(vocabulary.types) if type == TokenType.CONTROL]
    for way, found in (("alone", answer.alone), ("batch", answer.batch)):
        for prompt, new in zip(prompts, found, strict=False):
            if len(new) != _NEW_TOKENS:
                raise ExportMismatchError(f"llama.cpp generated {len(new)} tokens {way}, not {_NEW_TOKENS}")
            own_TV = _log_probabilities(child, prompt + new)[len(prompt) - 1 : -1]
            taken = own_TV[torch.arange(len(new)), torch.tensor(new)]
            own_TV[:, ends] = -torch.inf
            missed = (own_TV.max(-1).values - taken).max().item()
            if missed > slack:
                raise ExportMismatchError(
                    f"llama.cpp generates other tokens than the child ({way}): {new}, of which one is {missed:.3g} "
                    "nats less likely than the child's own"
                )


def _texts(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """The text to tokenise, in the form that the tokenizer would bring it to first."""
    if tokenizer is None:
        return ()
    form = normalisation_of(tokenizer)
    return mixed_text() if form is None else tuple(unicodedata.normalize(form, piece) for piece in mixed_text())


def _check_ids(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], answer: LlamaCppAnswers) -> None:
    for special, found in ((False, answer.ids), (True, answer.ids_with_special)):
        for text, theirs in zip(texts, found, strict=True):
            own = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            if own != theirs:
                parting = _parting(tokenizer, own, theirs)
                raise ExportMismatchError(f"llama.cpp does not tokenise text as the child's tokenizer does: {parting}")


def _parting(tokenizer: PreTrainedTokenizerBase, own: list[int], theirs: list[int]) -> str:
    """Where two lists of ids part, with what stands there."""
    pairs = enumerate(zip(own, theirs, strict=False))
    place = next((index for index, (mine, other) in pairs if mine != other), min(len(own), len(theirs)))
    around = tokenizer.decode(own[max(0, place - 3) : place + 5])
    return f"{theirs[place : place + 5]}, not {own[place : place + 5]}, in {around!r}"
