"""HiGHS without a word: it greets on standard output, which is our caller's."""

import os
import sys
from functools import cache

import highspy


def quiet_highs() -> highspy.Highs:
    """A new HiGHS of one thread that prints nothing."""
    let_it_greet()
    highs = highspy.Highs()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    return highs


@cache
def let_it_greet() -> None:
    """HiGHS 1.16 prints its name when a process makes its first solver, on standard output and whatever its options
    say. That output may be JSON: the greeting goes nowhere."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            highspy.Highs()  # type: ignore[no-untyped-call]
    finally:
        os.dup2(kept, 1)
        os.close(kept)
