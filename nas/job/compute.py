"""The section `compute` of a job file: the type in which a search multiplies. Imports no torch."""

from typing import Literal

from nas.job.sections import Section


class Compute(Section):
    """`precision` is the type of matrix products in the passes that distil, score, heal and evaluate; all else of them
    stays in float32, and times are taken in the scenario's type. `tf32` is for NVIDIA's GPUs since Ampere.
    """

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
