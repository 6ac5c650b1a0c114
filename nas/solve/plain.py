"""A search's problem under the rule that layers are all of one size, as in any checkpoint of the parent's family.

Whole blocks may be missing, and each subblock may have a precision of its own. Knows which choices such a layer is made
of; `solvers/refine/agreement.py` knows how the rule is kept.
"""

from collections.abc import Iterable

from blocklib.block import SKIP, Architecture, Block, Choice, Subblock
from solvers.problem import Problem
from solvers.refine.agreement import agreeing

_LEFT_OUT = Block(SKIP, SKIP)


def plain_questions(problem: Problem, choices: Iterable[Choice], layers: int) -> dict[str, Problem]:
    """A problem for each number of KV heads and width of an FFN that all layers may share, by their spelling, as in
    `kv2+ffn512`. `choices` are those that the problem's options stand for."""
    sizes: dict[str, dict[Subblock, dict[str, None]]] = {"kv": {}, "ffn": {}}
    for choice in choices:
        if isinstance(choice.what, Subblock) and choice.what.kind in sizes:
            sizes[choice.what.kind].setdefault(choice.what.unrounded, {})[str(choice.what)] = None
    fillings = {
        str(Block(attention, ffn)): (stored_attention, stored_ffn)
        for attention, stored_attention in sizes["kv"].items()
        for ffn, stored_ffn in sizes["ffn"].items()
    }
    return agreeing(problem, fillings, (str(SKIP), str(SKIP)), layers)


def sizes_of(architecture: Architecture) -> set[str]:
    """The sizes of its layers, as `plain_questions` names them, those left out aside; a run of FFNs or blocks in
    parallel are a size of their own. It is plain if there is at most one."""
    return {str(block) for block in architecture.unrounded.blocks} - {str(_LEFT_OUT)}
