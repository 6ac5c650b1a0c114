"""The predicted costs of trials, summed again after the costs of their parts have changed."""

from blocklib.block import Architecture
from db.store import Store
from nas.solve.solve import Measured


def predict_again(store: Store, known: Measured) -> int:
    """Sum every trial of the search anew. Returns how many came out otherwise.

    The proof, the explanation and the price of such a trial belong to the old costs and are removed. Its measurements
    stay. A metric that the trial is older than is filled in; that alone changes no proof.
    """
    changed = 0
    for trial in store.trials(known.search.id):
        own = known.under(Architecture.parse(trial.architecture))
        spelled = {str(choice): choice for choice in own.costs}
        if not trial.choices or not set(trial.choices) <= spelled.keys():
            continue  # the search has another space now
        columns = own.predicted(spelled[text] for text in trial.choices)
        other = {name for name, value in columns.items() if not _alike(getattr(trial, name), value)}
        if not other:
            continue
        if all(getattr(trial, name) is None for name in other):
            store.update_trial(trial.id, **columns)
            continue
        is_proven = trial.gap is not None
        unproven = {"bound": None, "gap": None, "status": "feasible"} if is_proven else {}
        store.update_trial(trial.id, **columns, **unproven, details=dict.fromkeys(("explained", "solved_for", "plain")))
        changed += 1
    return changed


def _alike(one: float | None, other: float | None) -> bool:
    """But for rounding: sums are made in another order."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))
