"""From Python: run a job, then ask the same measurements for other budgets.

    python examples/another_budget.py job.yaml

The first part takes as long as the search does, or seconds where it was run before; each further budget takes seconds.
"""

import sys

from rich.console import Console

from db.store import Store
from nas import config
from nas.pipeline import search
from nas.solve import architecture_of, measured, solve
from nas.units import parse_budget


def main() -> None:
    request = config.load(sys.argv[1])
    with Store.open() as store:
        outcome = search(request, store, Console())
        known = measured(store, outcome.search)
        for budget in ("latency=90%", "latency=80%", "parameters=80%,memory=90%"):
            solution = solve(known, parse_budget(budget))
            print(f"{budget}: sum of scores {solution.score:.4f}: {architecture_of(solution, known.layers)}")


if __name__ == "__main__":
    main()
