"""The space of a request, spelled out for one parent: every choice a search may make. Knows sizes, not weights."""

from collections.abc import Iterable, Iterator, Sequence

from blocklib.block import SKIP, Block, Choice, Parallel, Role, Subblock
from blocklib.errors import SubblockError
from blocklib.formats.gguf_types import precisions_for
from blocklib.kinds import ATTENTION, FFN, check, control, kind_of, parent_block
from blocklib.shape import Shape
from nas.errors import JobError
from nas.job.fusion_candidates import Matrix, ffn_runs, windows
from nas.job.sections import FuseSection, Space
from nas.job.values import Share, SpaceOption

_ROWS = 32
"""Numbers in a block of the smallest formats: the width of an FFN is the length of the rows that lead out of it."""
_FLOATS = ("f16", "bf16", "f32")


def choices(space: Space, shape: Shape, dependency: Matrix | None = None, format: str = "hf") -> tuple[Choice, ...]:
    """Every option of every slot, the parent's own first in each, then runs, dropped blocks, pairs and windows. Where
    the space has precisions, every subblock comes in each of them, and so do embedding and head, last of all.

    `dependency` is the parent's matrix (`nas/scoring/block_dependency.py`); without it every run and every window is an
    option. `format` is the export's: for `decilm`, shares of a width are multiples of 256 where the parent's width is
    one, and the first layer keeps its attention. Without it, the export would add an attention of zeros there, with a
    head in the cache and a time that no cost of the search holds.

    Raises JobError or SubblockError, naming the option, where the parent cannot hold it.
    """
    step = _ROWS if space.precision else 8
    attentions = _distinct(
        [Subblock("kv", str(shape.kv_heads)), *(_sized("attention", o, shape, format) for o in space.attention)]
    )
    ffns = _distinct(
        [Subblock("ffn", str(shape.ffn_width)), *(_sized("ffn", o, shape, format, step) for o in space.ffn)]
    )
    # A sparse FFN is worth its place only beside a dense one that does as much for a token.
    ffns = _distinct([*ffns, *filter(None, (control(ffn, shape) for ffn in ffns))])
    runs, windowed = _runs(space.fuse, shape, dependency), _windows(space.parallel, shape, dependency)
    found: list[Choice] = []
    for layer in range(shape.layers):
        found += [Choice(layer, "attention", attention) for attention in attentions]
        found += [Choice(layer, "ffn", ffn) for ffn in ffns]
        found += [Choice(layer, "ffn", run) for run in runs.get(layer, [])]
        pairs = [Block(attention, ffn) for attention in attentions[1:] for ffn in ffns[1:]] if space.pairs else []
        if space.drop_blocks and Block(SKIP, SKIP) not in pairs:
            pairs.append(Block(SKIP, SKIP))
        found += [Choice(layer, "block", pair) for pair in pairs]
        if layer in windowed:
            found.append(Choice(layer, "block", Parallel((parent_block(shape),) * windowed[layer])))
    if format == "decilm":
        found = [choice for choice in found if choice.layer or _attends(choice)]
    for choice in found:
        check(choice, shape)
    return tuple(_stored(found, precisions(space, shape), shape, space.untie) if space.precision else found)


def precisions(space: Space, shape: Shape) -> tuple[str, ...]:
    """The precisions that the space offers to a parent of this shape; none if all is stored as the scenario says.

    Raises JobError for one whose blocks do not fit the parent's rows.
    """
    fitting = precisions_for(shape)
    rows = " and ".join(map(str, sorted({shape.hidden, shape.heads * shape.head_dim})))
    if space.precision == "all":
        if not fitting:
            raise JobError(
                f"space.precision: no type stores rows in blocks that divide the parent's, of {rows} numbers; leave it "
                f"out, or give some of {', '.join(_FLOATS)}"
            )
        return fitting
    for name in space.precision:
        if name not in (*fitting, *_FLOATS):
            raise JobError(
                f"space.precision: {name} stores rows in blocks that do not divide the parent's, of {rows} numbers; "
                f"give some of {', '.join((*fitting, *_FLOATS))}"
            )
    return tuple(space.precision)


def _stored(found: Iterable[Choice], names: Sequence[str], shape: Shape, untie: bool) -> Iterator[Choice]:
    """Every choice in each precision; an empty slot has none. A tied head is the embedding, and has its precision."""
    tables: tuple[Role, ...] = ("tables",) if shape.tied and not untie else ("embedding", "head")
    for choice in found:
        if isinstance(choice.what, Subblock) and choice.what != SKIP:
            yield from (Choice(choice.layer, choice.role, choice.what.at(name)) for name in names)
        else:
            yield choice
    for role in tables:
        yield from (Choice(shape.layers, role, Subblock(role).at(name)) for name in names)


def _runs(asked: FuseSection | None, shape: Shape, dependency: Matrix | None) -> dict[int, list[Subblock]]:
    """The runs of FFNs that may be fused, by their first layer."""
    if asked is None:
        return {}
    if asked.share is None or dependency is None:
        spans = [
            (first, length)
            for first in range(shape.layers)
            for length in range(2, min(asked.longest, shape.layers - first) + 1)
            if asked.widest is None or length * shape.ffn_width <= asked.widest
        ]
    else:
        widths = [shape.ffn_width] * shape.layers
        low = ffn_runs(
            dependency, asked.longest, asked.share, widths=widths, widest=asked.widest, leave_last=asked.keep_last
        )
        spans = [(run.first, run.length) for run in low]
    kind, own = "fuse" if asked.norm == "fold" else "fuse_last", parent_block(shape).ffn
    found: dict[int, list[Subblock]] = {}
    for first, length in spans:
        found.setdefault(first, []).append(Subblock(kind, parts=(own,) * length))
    return found


def _windows(size: int | None, shape: Shape, dependency: Matrix | None) -> dict[int, int]:
    """The windows of blocks that may run in parallel: how many blocks, by the first layer."""
    if size is None:
        return {}
    if dependency is None:
        return dict.fromkeys(range(shape.layers - size + 1), size)
    return {run.first: run.length for run in windows(dependency, size)}


def check_kinds(named: Iterable[str]) -> None:
    """Raise JobError where distill.kinds names a kind there is not."""
    known = sorted((ATTENTION | FFN).keys() - {"skip"})
    for kind in named:
        if kind not in known:
            raise JobError(f"distill.kinds.{kind}: there is no such kind; kinds: {', '.join(known)}")


def _attends(choice: Choice) -> bool:
    """Whether no attention that it replaces is left out."""
    return ("attention", SKIP) not in choice.subblocks


def _sized(role: Role, option: SpaceOption, shape: Shape, format: str, step: int = 8) -> Subblock:
    if isinstance(option, Share):
        size = _heads(option, shape) if role == "attention" else _width(option, shape, format, step)
        option = Subblock(option.kind, str(size))
    try:
        kind = kind_of(role, option)
        sized = kind.sized(option, shape)
        kind.check(sized, shape)
    except SubblockError as error:
        raise SubblockError(f"space.{role}: {error}") from error
    return sized


def _heads(option: Share, shape: Shape) -> int:
    heads = option.share * shape.kv_heads
    if heads != int(heads) or heads < 1:
        raise JobError(
            f"space.attention: {option} of the parent's {shape.kv_heads} KV heads is {heads:g}; "
            "give a share that leaves a whole number, or drop it"
        )
    return int(heads)


def _width(option: Share, shape: Shape, format: str, step: int) -> int:
    """To the nearest multiple of 256 where the parent's own width is one and it is wide, or the format is `decilm`,
    which most engines read in such widths only; of `step` otherwise: 8, which kernels run well, or what the blocks of
    precisions need."""
    wide = shape.ffn_width >= 2048 or format == "decilm"
    step = 256 if shape.ffn_width % 256 == 0 and wide else step
    return min(shape.ffn_width, max(step, round(option.share * shape.ffn_width / step) * step))


def _distinct(subblocks: list[Subblock]) -> list[Subblock]:
    return list(dict.fromkeys(subblocks))
