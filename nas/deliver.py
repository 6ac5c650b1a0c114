"""Exporting a trial that was built earlier, from its child's file and its search's row alone."""

from pathlib import Path

from transformers import AutoTokenizer

from db.store import Store
from nas.children import child_file, load_child
from nas.export.exported import Exported
from nas.export.formats import export
from nas.request import checkpoint_of
from nas.table import comparison, markdown


def export_trial(store: Store, trial_id: int, format: str, out: Path) -> Exported:
    """Raises FileNotFoundError where the trial was never built, FileExistsError where `out` is taken, and what the
    format's exporter raises."""
    trial = store.trial(trial_id)
    search = store.find_search(trial.search_id)
    child = load_child(child_file(Path(search.request["home"]), trial.key))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_of(search.parent))
    card = f"# {search.name}\n\n{markdown(comparison(search, trial))}\n"
    return export(format, child, tokenizer, out, card)
