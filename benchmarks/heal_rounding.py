"""Healing a child before its weights are rounded, or through their rounding, at equal tokens.

    python benchmarks/heal_rounding.py [PARENT] [--child ARCHITECTURE] [--text FILES] [--precisions q4_0 q5_0]
        [--tokens 32768] [--heldout 16384] [--seeds 2] [--rates 2e-4] [--ways WAY ...]

The child has the parent's own blocks, or those of --child; what is not the parent's is fitted by least squares. Layers
are stored in the precision, embedding and head as they are. Each seed trains on a stretch of text of its own, and every
way on the same. Prints a Markdown table: KL to the parent and loss on held-out text, in nats. Ways:

- none: refit, not healed
- after-plain, after: healed, then rounded plainly, or refit, which a search does
- through-plain, through: healed with weights that are rounded plainly in every pass, then stored so, or refit
- first-plain: refit, healed from there through plain rounding, stored so
- first, first-learnt: refit, healed from there with the scales of that, or scales that learn, stored so
- half: healed with half of the tokens, refit, healed through rounding as in first with the rest
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import nas.terminal.quiet  # isort: skip
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blocklib.activations import cached
from blocklib.assemble import assemble
from blocklib.block import SKIP, Architecture, Block, Choice, Subblock
from blocklib.initial_weights import build
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent, load_parent
from blocklib.precisions.formats import FORMATS
from blocklib.precisions.parts import matrix_types
from blocklib.precisions.round_model import RoundingText, Stored, round_model
from blocklib.precisions.rounded import Rounded
from blocklib.precisions.rounding import How, round_matrix, unpacked
from blocklib.precisions.straight_through import KeptScales, passed
from nas.job.sections import Data
from nas.stages.evaluate import evaluate
from nas.stages.heal import heal
from nas.stages.heal_settings import Healing
from nas.text.kept_tokens import load_tokens
from nas.text.tokenizer import load_tokenizer

assert nas.terminal.quiet

BATCH, CALIBRATION = 8, 16384


class PlainRounding(nn.Module):
    """A parametrization: what llama.cpp's own rounding leaves of a matrix, scales chosen anew in every pass."""

    def __init__(self, type: Type, name: str):
        super().__init__()
        self._type, self._name = type, name

    def forward(self, weight_OI: Tensor) -> Tensor:
        return passed(
            weight_OI, unpacked(round_matrix(weight_OI, self._type, how="plain", name=self._name), self._type)
        )


class LearntScales(nn.Module):
    """A parametrization: the nearest levels on scales that are trained, each by a factor (LSQ, arXiv 1902.08153)."""

    def __init__(self, rounded: Rounded):
        super().__init__()
        self._rounded = rounded
        self.factors_NO = nn.Parameter(torch.ones_like(rounded.scales_NO))

    def forward(self, weight_OI: Tensor) -> Tensor:
        product_NO = self._rounded.scales_NO * self.factors_NO
        scales_N1O, minima_N1O = (
            passed(product_NO, product_NO.half().float())[:, None],
            self._rounded.minima_NO[:, None],
        )
        aims_NSO = weight_OI.T.reshape(len(scales_N1O), -1, len(weight_OI)) - minima_N1O
        aims_NSO = aims_NSO / torch.where(scales_N1O == 0, 1, scales_N1O)
        levels_NSO = passed(aims_NSO, self._rounded.format.nearest(aims_NSO.detach()))
        return (levels_NSO * scales_N1O + minima_N1O).flatten(0, 1).T


@dataclass(frozen=True, eq=False)
class Setting:
    """One child in one precision, and the text that heals it. `architecture` is the child's with precisions."""

    parent: Parent
    child: PuzzleNasForCausalLM
    architecture: Architecture
    train_BT: Tensor
    healing: Healing

    def healed(self, child: PuzzleNasForCausalLM, share: tuple[float, float] = (0.0, 1.0)) -> PuzzleNasForCausalLM:
        """The same model, healed in place on that share of the text."""
        first, end = (round(part * len(self.train_BT)) for part in share)
        text_BT = self.train_BT[first:end]
        with tempfile.TemporaryDirectory() as checkpoints:
            settings = replace(self.healing, tokens=text_BT.numel())
            for _ in heal(self.parent.model, child, text_BT, settings, Path(checkpoints)):
                pass
        return child

    def rounded(self, child: PuzzleNasForCausalLM, how: How = "refit") -> tuple[PuzzleNasForCausalLM, Stored]:
        text_BT = self.train_BT[: CALIBRATION // self.train_BT.shape[1]]
        return round_model(child, self.architecture, RoundingText(text_BT, BATCH), how)

    def through(self, child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
        """The same model with weights that are rounded plainly in every pass."""
        for matrix, name, type in self._matrices(child):
            parametrize.register_parametrization(matrix, "weight", PlainRounding(type, name))
        return child

    def on_scales(self, child: PuzzleNasForCausalLM, stored: Stored, learnt: bool) -> PuzzleNasForCausalLM:
        """The same model, whose matrices were rounded to `stored`, with weights on those scales in every pass."""
        for matrix, name, type in self._matrices(child):
            rounding: nn.Module = PlainRounding(type, name)
            if type in FORMATS:
                held = Rounded.unpacked(FORMATS[type], stored[name])
                rounding = LearntScales(held) if learnt else KeptScales(held, name)
            parametrize.register_parametrization(matrix, "weight", rounding)
        return child

    def _matrices(self, child: PuzzleNasForCausalLM) -> list[tuple[nn.Module, str, Type]]:
        """Those of parts with a precision, with their names in the model and their types."""
        found = []
        for index, (start, block) in enumerate(self.architecture.placed()):
            for part in Choice(start, "block", block).parts:
                for name, type in matrix_types(part, self.parent.shape).items() if part.precision else ():
                    whole = f"model.layers.{index}.{name}"
                    found.append((child.get_submodule(whole.removesuffix(".weight")), whole, type))
        return found


def settled(child: PuzzleNasForCausalLM, as_rounded: bool) -> PuzzleNasForCausalLM:
    """The same model with plain weights: those of its passes, or the full ones behind."""
    for module in list(child.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=as_rounded)
    return child.requires_grad_(False)


def after(setting: Setting, child: PuzzleNasForCausalLM, how: How) -> PuzzleNasForCausalLM:
    return setting.rounded(setting.healed(child), how)[0]


def through(setting: Setting, child: PuzzleNasForCausalLM, how: How) -> PuzzleNasForCausalLM:
    healed = setting.healed(setting.through(child))
    return settled(healed, True) if how == "plain" else setting.rounded(settled(healed, False), how)[0]


def first_plain(setting: Setting, child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    return settled(setting.healed(setting.through(setting.rounded(child)[0])), True)


def first(
    setting: Setting,
    child: PuzzleNasForCausalLM,
    learnt: bool = False,
    share: tuple[float, float] = (0.0, 1.0),
) -> PuzzleNasForCausalLM:
    held = setting.on_scales(*setting.rounded(child), learnt)
    return settled(setting.healed(held, share), True)


def half(setting: Setting, child: PuzzleNasForCausalLM) -> PuzzleNasForCausalLM:
    return first(setting, setting.healed(child, (0.0, 0.5)), share=(0.5, 1.0))


WAYS: Mapping[str, Callable[[Setting, PuzzleNasForCausalLM], PuzzleNasForCausalLM]] = {
    "none": lambda setting, child: setting.rounded(child)[0],
    "after-plain": lambda setting, child: after(setting, child, "plain"),
    "after": lambda setting, child: after(setting, child, "refit"),
    "through-plain": lambda setting, child: through(setting, child, "plain"),
    "through": lambda setting, child: through(setting, child, "refit"),
    "first-plain": first_plain,
    "first": first,
    "first-learnt": lambda setting, child: first(setting, child, learnt=True),
    "half": half,
}


def main() -> None:
    asked = parsed()
    torch.set_num_threads(1)
    parent = load_parent(asked.parent)
    length = min(asked.length, int(parent.model.config.max_position_embeddings))
    data = Data.model_validate(
        {
            "train": asked.text or "stdlib", "sequence_length": length, "calibration_tokens": length,
            "distillation_tokens": asked.tokens * asked.seeds, "evaluation_tokens": asked.heldout,
            "score_tokens": length,
        }
    )  # fmt: skip
    tokens = load_tokens(data, load_tokenizer(Path(asked.parent)), parent.shape.vocabulary)
    texts = torch.from_numpy(tokens.distillation.copy()).tensor_split(asked.seeds)
    heldout_BT = torch.from_numpy(tokens.evaluation.copy())
    own = evaluate(parent.model, parent.model, heldout_BT)
    print(f"parent: loss {own.lm_loss:.4f} on {heldout_BT.numel()} held-out tokens; {texts[0].numel()} heal\n")
    heads = [f"{what} {seed}" for what in ("KL", "loss") for seed in range(asked.seeds)]
    print(f"| precision | way | rate | mean KL | {' | '.join(heads)} |\n|---|---|---|---|{'---|' * len(heads)}")
    children = [child_of(parent, asked.child, text_BT) for text_BT in texts]
    for precision in asked.precisions:
        stored_so = at(Architecture.parse(children[0].config.architecture), precision)
        for way in asked.ways:
            for rate in asked.rates[:1] if way == "none" else asked.rates:
                found = []
                for child, text_BT in zip(children, texts, strict=True):
                    healing = Healing(text_BT.numel(), asked.batch, rate, 0.05, 1.0)
                    setting = Setting(parent, child, stored_so, text_BT, healing)
                    found.append(evaluate(parent.model, WAYS[way](setting, deepcopy(child)), heldout_BT))
                numbers = [each.kl for each in found] + [each.lm_loss for each in found]
                mean = sum(each.kl for each in found) / len(found)
                cells = [precision, way, f"{rate:g}", f"{mean:.4f}", *(f"{number:.4f}" for number in numbers)]
                print(f"| {' | '.join(cells)} |", flush=True)


def child_of(parent: Parent, spelling: str | None, text_BT: Tensor) -> PuzzleNasForCausalLM:
    """The child with first weights, fitted by least squares on the head of the text; its weights are its own."""
    architecture = Architecture.parse(spelling) if spelling else parent.architecture
    parts = [part for choice in architecture.choices() for part in choice.parts]
    missing = [part for part in parts if part.what != SKIP and not parent.own(part)]
    built = build(
        parent, missing, cached(parent.model, text_BT[: CALIBRATION // text_BT.shape[1]], BATCH), BATCH, fit=True
    )
    weights = {part: {} for part in parts if part.what == SKIP} | {unit.choice: unit.fitted for unit in built}
    return deepcopy(assemble(parent, architecture, weights.__getitem__))


def at(architecture: Architecture, precision: str) -> Architecture:
    """The same with every subblock that has weights in that precision."""

    def stored(part: Subblock) -> Subblock:
        return part if part == SKIP else part.at(precision)

    return Architecture(tuple(Block(stored(block.attention), stored(block.ffn)) for _, block in architecture.placed()))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", nargs="?", default=str(resources.files("nas").joinpath("embedded/parent")))
    parser.add_argument("--child", help="an architecture; the parent's own blocks by default")
    parser.add_argument("--text", nargs="+", help="files; the standard library's sources by default")
    parser.add_argument("--precisions", nargs="+", default=["q4_0", "q5_0"])
    parser.add_argument("--tokens", type=int, default=32768, help="of healing")
    parser.add_argument("--heldout", type=int, default=16384, help="held-out tokens")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences of a step of healing")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
