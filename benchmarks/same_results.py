"""Whether two homes hold the same results, to the last bit: scores, tensors of the library, and the KL of children.

    python benchmarks/same_results.py HOME OTHER

Each is the home of the same job, searched by another version of this package. Where the jobs differ, as in
`compute.precision`, it also says how near the KLs of the same options are, and how alike they rank them.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file

from db.store import Store
from nas.scoring.rank_correlation import spearman


def scores(home: Path) -> dict[str, tuple[float, ...]]:
    """By key, what was measured of each option."""
    with Store.open(home / "nas.db", "read") as store:
        options = [known for search in store.searches() for known in store.options(search.id) if known.score]
    return {
        known.score.key: (known.score.kl, known.score.lm_loss, known.score.top1_agreement, known.score.hidden_cosine)
        for known in options
        if known.score
    }


def kls(home: Path) -> dict[str, float]:
    """By option, as it is spelled."""
    with Store.open(home / "nas.db", "read") as store:
        options = [known for search in store.searches() for known in store.options(search.id)]
    return {known.option.choice: known.score.kl for known in options if known.score}


def compare(left: dict[str, float], right: dict[str, float]) -> None:
    names = sorted(name for name in left.keys() & right.keys() if left[name] > 0)
    away = sorted(abs(right[name] / left[name] - 1) for name in names)
    if any(away):
        ranks = spearman([left[name] for name in names], [right[name] for name in names])
        print(
            f"KLs of {len(names)} options: half within {median(away):.2%}, all within {away[-1]:.2%}; "
            f"Spearman's rank correlation {ranks or 0:.5f}"
        )


def children(home: Path) -> dict[str, tuple[float | None, ...]]:
    """By architecture, the KL before and after healing."""
    with Store.open(home / "nas.db", "read") as store:
        built = [trial for trial in store.trials() if trial.kl is not None]
    return {trial.architecture: (trial.kl_before_heal, trial.kl) for trial in built}


def library(home: Path) -> dict[str, dict[str, torch.Tensor]]:
    root = home / "library"
    return {str(file.relative_to(root)): load_file(file) for file in sorted(root.rglob("*.safetensors"))}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", type=Path, nargs=2)
    one, other = parser.parse_args().homes
    for what, read in (("scores", scores), ("children", children)):
        left, right = read(one), read(other)
        same = sum(value == right.get(key) for key, value in left.items())
        print(f"{what}: {len(left)} and {len(right)}, {same} the same")
    compare(kls(one), kls(other))
    left_files, right_files = library(one), library(other)
    same = sum(are_equal(tensors, right_files.get(name, {})) for name, tensors in left_files.items())
    print(f"library files: {len(left_files)} and {len(right_files)}, {same} the same")


if __name__ == "__main__":
    main()
