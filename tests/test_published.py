"""The name that a model card gives a parent."""

from pathlib import Path

import pytest

from nas.export.published import published_name


def folder(path: Path, front_matter: str) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    return str(path)


@pytest.mark.parametrize("parent", ["HuggingFaceTB/SmolLM2-135M", "gpt2"])
def test_a_hub_id_is_its_own_name(parent: str) -> None:
    assert published_name(parent) == parent


def test_the_parent_that_ships_here_is_not_published() -> None:
    assert published_name("embedded") is None


@pytest.mark.parametrize(
    ("front_matter", "name"),
    [
        ("base_model: someone/large", "someone/large"),
        ("base_model: someone/large\nmodel_name: me/mine", "me/mine"),
        ("base_model: someone/large\nmodel_name: out-7", "someone/large"),  # A trainer's name of its output folder
        ("base_model:\n- one/a\n- two/b", ["one/a", "two/b"]),
        ("base_model: /home/me/parent", None),
        ("base_model: ./runs/parent", None),
        ("base_model: 7", None),
        ("license: mit", None),
        ("base_model: [broken", None),
    ],
)
def test_a_folder_is_named_by_its_own_card(front_matter: str, name: str | list[str] | None, tmp_path: Path) -> None:
    assert published_name(folder(tmp_path / "parent", front_matter)) == name


def test_a_folder_without_a_card_has_no_name(tmp_path: Path) -> None:
    assert published_name(str(tmp_path)) is None
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    assert published_name(str(tmp_path)) is None


def test_the_hubs_own_cache_keeps_the_name(tmp_path: Path) -> None:
    path = tmp_path / "hub/models--someone--large-7B/snapshots/0a1b2c"
    assert published_name(folder(path, "base_model: another/one")) == "someone/large-7B"
