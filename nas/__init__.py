"""Make an LLM fit the hardware it is served on: architecture search over a library of cheaper blocks.

    import nas

    search = nas.run("job.yaml")  # or nas.load("demo"), from the database
    trial = search.solve("latency=50%")
    search.export(search.build(trial), "child", format="hf")

Names are loaded when they are first used: `import nas` loads no library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.answers import Front, Trial
    from nas.api import bench, dependency, load, measure, of_trial, plan, run, serve, tune
    from nas.search import Search, solve_across
    from nas.solve.effort import Effort
    from nas.submitted import SubmittedJob, submit
    from nas.tables.solve import solve_table
    from nas.trial_query import TrialQuery, delete_trials, find_trials, trials

__all__ = [
    "Effort", "Front", "Search", "SubmittedJob", "Trial", "TrialQuery", "bench", "delete_trials", "dependency",
    "find_trials", "load", "measure", "of_trial", "plan", "run", "serve", "solve_across", "solve_table", "submit",
    "trials", "tune",
]  # fmt: skip

_FILE_OF = {
    "Effort": "nas.solve.effort",
    "Front": "nas.answers",
    "Search": "nas.search",
    "SubmittedJob": "nas.submitted",
    "Trial": "nas.answers",
    "TrialQuery": "nas.trial_query",
    "bench": "nas.api",
    "delete_trials": "nas.trial_query",
    "dependency": "nas.api",
    "find_trials": "nas.trial_query",
    "load": "nas.api",
    "measure": "nas.api",
    "of_trial": "nas.api",
    "plan": "nas.api",
    "run": "nas.api",
    "serve": "nas.api",
    "solve_across": "nas.search",
    "solve_table": "nas.tables.solve",
    "submit": "nas.submitted",
    "trials": "nas.trial_query",
    "tune": "nas.api",
}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_FILE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
