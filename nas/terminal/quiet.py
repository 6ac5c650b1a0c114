"""Silences what libraries print of their own accord while they load and run. Imported for its effect, before them.

We print ourselves what a user must know; progress has one place.
"""

import os
import warnings

# Said outright, it keeps tokenizers from warning of forks; ours all become another program at once.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
warnings.filterwarnings("ignore", category=FutureWarning)

from transformers.utils import logging  # noqa: E402  (reads the environment when it is imported)

logging.disable_progress_bar()
