"""Peak memory and seconds of looking at a parent, as each search begins: every weight is read, and none is kept.

    python benchmarks/parent_memory.py PARENT

PARENT is the folder of a checkpoint, for example of `random_llama.py`. Memory is the process's, with its libraries.
"""

import argparse
import resource
import time
from pathlib import Path

from blocklib.parent import load_parent


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", type=Path)
    asked = parser.parse_args()
    before, started = peak_bytes(), time.perf_counter()
    parent = load_parent(str(asked.parent))
    seconds = time.perf_counter() - started
    files_bytes = sum(file.stat().st_size for file in asked.parent.glob("*.safetensors"))
    print(f"parent {parent.digest}, {files_bytes / 1e9:.2f} GB of files: {seconds:.0f} s")
    print(f"peak {peak_bytes() / 1e9:.2f} GB, {before / 1e9:.2f} GB of which before")


if __name__ == "__main__":
    main()
