"""The subblocks of a search that training left no better than their first weights, which are then kept."""

from collections import Counter
from collections.abc import Iterable

from blocklib.block import Choice
from db.models import DistillationRow


def useless_training(rows: Iterable[DistillationRow]) -> str | None:
    """How many of the subblocks that were trained ended no better than they began, by kind, as one line; None where all
    are better. Where it is more than half of them, the line says what to do."""
    trained, useless = Counter[str](), Counter[str]()
    for row in rows:
        if row.loss_trained is not None:
            kind = Choice.parse(row.choice).subblocks[0][1].kind
            trained[kind] += 1
            before = row.loss_first_weights if row.loss_least_squares is None else row.loss_least_squares
            useless[kind] += row.loss_trained >= before
    if not useless.total():
        return None
    of_kinds = ", ".join(f"{count} of {trained[kind]} {kind}" for kind, count in sorted(useless.items()) if count)
    line = (
        f"training left {useless.total()} of {trained.total()} subblocks no better than their first weights: {of_kinds}"
    )
    is_most = 2 * useless.total() > trained.total()
    return f"{line}; to find a learning rate that suits this parent: nas tune JOB" if is_most else line
