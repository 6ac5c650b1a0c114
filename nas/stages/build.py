"""Build any trial of a search: make its child, heal it as the job says, and time it. `nas/pipeline.py` builds the trial
that meets a job's budget; here the caller names the trial.
"""

from rich.console import Console

from db import models
from db.store import Store
from nas.files.home import child_file, home_of
from nas.job.stored import request_of
from nas.solve.solve import healed_row
from nas.stages.child import healing_key, is_timed
from nas.stages.real_values import Reality


def build_trial(
    store: Store, search: models.SearchRow, trial: models.TrialRow, console: Console, time: bool
) -> models.TrialRow:
    """The trial itself where its child is built, else the trial of the child that healing makes of it; with `time`,
    timed beside its parent. Does only the missing work. Raises `nas.errors.StaleSearchError` if the parent, the text
    or, for times, the machine has changed.
    """
    times = time and request_of(search).is_timed_here and not is_timed(trial)
    is_built = trial.kl is not None and child_file(home_of(store, search), trial.child_key).is_file()
    if is_built and not times:
        return trial
    with Reality(store, search, console) as reality:
        if times:
            reality.check_machine()  # before any work
        if trial.kl is None:
            trial = store.add_trial(healed_row(trial, healing_key(reality.job)))
        if times:
            trial = reality.timed(trial)
        return reality.made(trial)
