"""From Python: run a job, then ask the same measurements for other budgets.

    python examples/another_budget.py job.yaml

The first part takes as long as the search does, or seconds where it was run before; each further budget takes seconds.
"""

import sys

import nas


def main() -> None:
    search = nas.run(sys.argv[1])
    for budget in ("latency=90%", "latency=80%", "parameters=80%,memory=90%"):
        trial = search.solve(budget)
        print(f"{budget}: sum of scores {trial.score:.4f}: {trial.architecture}")


if __name__ == "__main__":
    main()
