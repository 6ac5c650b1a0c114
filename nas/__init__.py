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
    from nas.api import Search, load, of_trial, run, solve_across, trials
    from nas.solve.effort import Effort

__all__ = ["Effort", "Front", "Search", "Trial", "load", "of_trial", "run", "solve_across", "trials"]

_OF_ANOTHER_FILE = {"Effort": "nas.solve.effort", "Front": "nas.answers", "Trial": "nas.answers"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_OF_ANOTHER_FILE.get(name, "nas.api")), name)


def __dir__() -> list[str]:
    return __all__
