"""A child as its parts: what a worker needs to assemble it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from blocklib.assemble import assemble_stored
from blocklib.block import Architecture, Choice
from blocklib.library import Library
from blocklib.model import PuzzleNasForCausalLM
from blocklib.parent import Parent
from db import models
from nas.stages.library import choice_weights
from nas.stages.prepare import Job


@dataclass(frozen=True)
class ChildParts:
    """An architecture, and the keys of the parts that it takes from the library, whose folder is `root`. `before` are
    the keys of the same parts as they are without precisions."""

    architecture: Architecture
    root: Path
    keys: Mapping[Choice, str]
    before: Mapping[Choice, str]

    @staticmethod
    def of(job: Job, trial: models.TrialRow) -> "ChildParts":
        architecture = Architecture.parse(trial.architecture)
        keys, before = (job.built_keys(each.choices()) for each in (architecture, architecture.unrounded))
        return ChildParts(architecture, job.library.root, keys, before)

    def assembled(self, parent: Parent) -> PuzzleNasForCausalLM:
        """The child on weights as parent and library have them."""
        library = Library(self.root)
        return assemble_stored(
            parent, self.architecture, lambda choice: choice_weights(parent, library, choice, self.keys)
        )

    def unrounded(self, parent: Parent) -> PuzzleNasForCausalLM:
        """The same child with its weights as they were before any was rounded."""
        return replace(self, architecture=self.architecture.unrounded, keys=self.before).assembled(parent)
