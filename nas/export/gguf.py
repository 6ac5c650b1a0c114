"""Export to GGUF, which llama.cpp, Ollama and LM Studio run, on any device that they know.

Children of parents of Llama's layout: any head counts, KV heads and FFN widths by layer, linear subblocks, empty slots
(`blocklib/formats/` says how). Before the folder appears, llama.cpp loads the file in a process of its own, and its
probabilities, greedy tokens and token ids are compared with the child's.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard
from transformers import GenerationConfig, PreTrainedTokenizerBase

from blocklib.block import Architecture, Choice
from blocklib.errors import MissingLlamaCppError, UnsupportedFormatError
from blocklib.formats import gguf
from blocklib.formats.gguf import GgufModel, as_stored, write_gguf
from blocklib.formats.gguf_types import precision_type, tensor_type
from blocklib.formats.gguf_vocabulary import Vocabulary
from blocklib.model import PuzzleNasConfig, PuzzleNasForCausalLM
from blocklib.parent import child_config, computing, model_with, own_shape
from nas.errors import MissingFileError, UnsupportedExportError
from nas.export.exported import Card, Exported, files_in, whole_folder
from nas.export.gguf_tokenizer import normalisation_of, vocabulary_of
from nas.export.parent_settings import ParentSettings
from nas.export.rounded import RoundedMatrices
from nas.export.verify_gguf import check_llama_cpp, compare_closely, compare_exactly

Made = TypeVar("Made")
DEFAULT_PRECISION = "f16"
_SAMPLING: dict[str, tuple[str, float]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 50),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("repeat_penalty", 1.0),
}
"""transformers' settings: Ollama's name, and the value that transformers takes where none is set."""
_LOADING = """
```
llama-server -m {file}
ollama create {name} -f Modelfile && ollama run {name}
```

```python
from llama_cpp import Llama

model = Llama("{file}", flash_attn=True)
```
"""


def export_gguf(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None = None,
    precision: str = DEFAULT_PRECISION,
) -> Exported:
    """Write the child to `out` as one file of that precision, with a Modelfile for Ollama, and compare it in llama.cpp.

    Subblocks that have a precision of their own keep it.

    Raises UnsupportedExportError for what llama.cpp cannot carry, ExportMismatchError where it computes or tokenises
    otherwise, MissingFileError where it is not installed, FileExistsError where `out` is not empty. After an error
    nothing is left behind.
    """
    return export_rounded_gguf(child, tokenizer, out, card, parent, RoundedMatrices(precision))


def export_rounded_gguf(
    child: PuzzleNasForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    card: str,
    parent: ParentSettings | None,
    rounded_matrices: RoundedMatrices,
) -> Exported:
    """The same with matrices that are rounded already."""
    precision, stored = rounded_matrices.precision, rounded_matrices.stored
    check_llama_cpp()
    _translated(partial(precision_type, precision))
    vocabulary = vocabulary_of(tokenizer, child.config.vocab_size)
    plain = model_with(child.config, {name: value.cpu() for name, value in child.state_dict().items()})
    title = _title(card) or out.name
    about = _about(card, title)
    unrounded = _without_precisions(plain)
    is_mixed = unrounded is not plain
    with whole_folder(out) as folder:
        file = folder / f"model-{'MIXED' if is_mixed else precision.upper()}.gguf"
        exact = folder / "exact.gguf"
        model = _translated(partial(write_gguf, exact, unrounded, "f32", vocabulary, about))
        agreement = compare_exactly(exact, computing(unrounded), vocabulary)
        if precision == "f32" and not is_mixed:
            exact.rename(file)
        else:
            exact.unlink()
            model = _translated(partial(write_gguf, file, plain, precision, vocabulary, about, stored))
        rounded = compare_closely(file, as_stored(plain, precision, stored), vocabulary, tokenizer)
        notes = _notes(model, tokenizer, rounded.kl)
        (folder / "Modelfile").write_text(modelfile(file.name, vocabulary, parent), encoding="utf-8")
        Card(card, _LOADING.format(file=file.name, name=_slug(title)), ("gguf",), notes).write(folder)
    return Exported(out, "gguf", agreement.difference, files_in(out), notes)


def _without_precisions(child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    """The same weights under an architecture that names no precision; the child itself if its own names none."""
    architecture = Architecture.parse(child.config.architecture)
    if architecture == architecture.unrounded:
        return child
    config = child_config(child.config, architecture.unrounded, own_shape(child.config))
    return model_with(config, child.state_dict())


def check_gguf(choices: Iterable[Choice], config: PuzzleNasConfig) -> None:
    """Raise UnsupportedExportError at what a GGUF file cannot carry."""
    _translated(partial(gguf.check_gguf, choices, config))


def modelfile(file: str, vocabulary: Vocabulary, parent: ParentSettings | None) -> str:
    """Ollama's description of a model: the file, the parent's way to sample, where to stop. Ollama takes the chat
    template from the file."""
    lines = [f"FROM ./{file}"]
    if parent is not None:
        lines += [f"PARAMETER {name} {value}" for name, value in _sampling(parent.generation.settings).items()]
    ends = dict(vocabulary.ids).get("eos")
    if ends is not None:
        lines.append(f'PARAMETER stop "{vocabulary.tokens[ends]}"')
    return "\n".join(lines) + "\n"


def _sampling(settings: GenerationConfig) -> dict[str, float]:
    """The settings by Ollama's names, all of them, because Ollama's defaults are others. Greedy is temperature 0."""
    found: dict[str, float] = {}
    for ours, (name, default) in _SAMPLING.items():
        value = getattr(settings, ours, None)
        found[name] = default if value is None else value
    return found if settings.do_sample else {"temperature": 0, "repeat_penalty": found["repeat_penalty"]}


def _translated(step: Callable[[], Made]) -> Made:
    """The result of the step; errors of files become errors of exports."""
    try:
        return step()
    except UnsupportedFormatError as error:
        raise UnsupportedExportError(str(error)) from error
    except MissingLlamaCppError as error:
        raise MissingFileError(str(error)) from error


def _notes(model: GgufModel, tokenizer: PreTrainedTokenizerBase, kl: float) -> tuple[str, ...]:
    """Sentences that a user of the file should read."""
    notes = []
    if model.is_mixed:
        shares = ", ".join(f"{count / sum(model.type_bytes.values()):.0%} {name}"
                           for name, count in model.type_bytes.items())  # fmt: skip
        notes.append(
            f"Its types are mixed: of the bytes of its matrices, {shares}. Tools that show one type show {model.named}."
        )
    if model.precisions != {"f32"}:
        stored = ", ".join(sorted(model.precisions))
        notes.append(f"At {stored}, llama.cpp is {kl:.1e} nats (mean KL) from the same weights computed in float32.")
    fallen = sorted(_other_types(model))
    if fallen:
        notes.append(
            "Matrices whose rows are no multiple of the block of their precision are stored as "
            f"{', '.join(fallen)}, as llama.cpp would store them."
        )
    if any(layer.zero_mixer or layer.zero_width for layer in model.layers):
        notes.append(
            "llama.cpp needs an FFN behind every attention, and attention in the first layer. Where the child has "
            "none, the file has one of zeros, which adds nothing to the result."
        )
    normalisation = normalisation_of(tokenizer)
    if normalisation is not None:
        notes.append(f"The tokenizer brings text to {normalisation} first, and llama.cpp does not: give it such text.")
    return tuple(notes)


def _other_types(model: GgufModel) -> set[str]:
    """Types that matrices of the layers have beside the precision's own."""
    shape = own_shape(model.config)
    widths = {shape.hidden, shape.heads * shape.head_dim, *model.widths}
    return {
        found.name.lower()
        for precision in model.precisions
        for width in widths
        if width and (found := tensor_type((1, width), precision)) != precision_type(precision)
    }


def _about(card: str, name: str) -> dict[str, str | int]:
    """The file's `general.*` texts, from the card's front matter."""
    data: Any = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    base: Any = data.get("base_model")
    about: dict[str, str | int] = {"name": name}
    if data.get("license"):
        about["license"] = str(data["license"])
    if base:
        first = str(base[0] if isinstance(base, list) else base)
        about |= {"base_model.count": 1, "base_model.0.name": first.rpartition("/")[2]}
        if first.count("/") == 1:
            about["base_model.0.repo_url"] = f"https://huggingface.co/{first}"
    return about


def _title(card: str) -> str:
    """The card's first heading; empty if it has none."""
    return next((line[2:].strip() for line in card.splitlines() if line.startswith("# ")), "")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-") or "child"
