"""A search's problem under the rule that layers are all of one size, as in any checkpoint of the parent's family.

Whole blocks may be missing. Knows which choices such a layer is made of; `solvers/refine/agreement.py` knows how the
rule is kept.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from blocklib.block import SKIP, Choice, Subblock
from solvers.problem import Option, Problem
from solvers.refine.agreement import agreeing
from solvers.refine.joint import filled

_LEFT_OUT = (str(SKIP), str(SKIP))


def plain_questions(problem: Problem, choices: Iterable[Choice]) -> dict[str, Problem]:
    """A problem for each number of KV heads and width of an FFN that all layers may share, by their spelling, as in
    `kv2+ffn512`. `choices` are those that the problem's options stand for."""
    sizes: dict[str, dict[str, None]] = {"kv": {}, "ffn": {}}
    for choice in choices:
        if isinstance(choice.what, Subblock) and choice.what.kind in sizes:
            sizes[choice.what.kind][str(choice.what)] = None
    return agreeing(problem, list(product(sizes["kv"], sizes["ffn"])), _LEFT_OUT)


def is_of_one_size(options: Sequence[Option]) -> bool:
    """Whether the layers that these options fill are filled alike, but for those left out."""
    names = filled(options)
    return len({(names[slot], names[slot + 1]) for slot in range(0, len(names), 2)} - {_LEFT_OUT}) <= 1
