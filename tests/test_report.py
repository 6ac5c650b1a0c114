"""The report, on searches whose rows are in a database: what it says, that it stands alone, that it escapes."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import rows
from stored import PARENT, add_measured, add_search, add_trial, choices, kl

from blocklib.block import Architecture, Choice
from db import models
from db.store import Store
from nas.job.units import parse_budget
from nas.report import write_front, write_report
from nas.report.agreement import agreement
from nas.report.distillation import lines
from nas.report.drawing import drawing
from nas.report.request import budget_lines
from nas.scoring.rank_correlation import spearman
from nas.solve.front import front_of
from nas.solve.solve import measured, solve, trial_row


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


@dataclass
class Seen(HTMLParser):
    """The page as a browser would see it: text by section, tooltips, and everything that could load something."""

    sections: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    rowspans: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)
    _section: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "section":
            self._section = given["id"]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            self.references += [given[name]] if name in given else []
        self.titles += [given["title"]] if "title" in given else []
        self.held += [given["title"]] if "held" in given.get("class", "").split() else []
        self.rowspans += [given["rowspan"]] if given.get("rowspan", "1") != "1" else []
        if tag not in ("meta", "path", "use", "line"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.sections[self._section] = self.sections.get(self._section, "") + data

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())


def seen(path: Path) -> Seen:
    page = Seen()
    page.feed(path.read_text())
    assert page._open == []
    return page


def test_a_measured_search(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    add_trial(store, search, "latency=80%", 1.1)
    chosen = add_trial(store, search, "latency=60%", 1.05)
    add_trial(store, search, "latency=45%", None)
    store.add_stage(rows.stage(name="distil", seconds=90.0, work_done=17))
    store.add_stage(rows.stage(name="distil", seconds=2.0, work_done=0))
    failure = models.FailureRow(search_id=search.id, stage="distil", place="L2.ffn=ffn32", reason="worker died")
    store.add_failure(failure)
    path = write_report(store, search, tmp_path / "made" / "report.html")
    page = seen(path)

    assert list(page.sections)[1:] == [
        "asked", "comparison", "architecture", "front", "agreement", "scores", "options", "distillation", "stages",
        "failures", "trials", "request",
    ]  # fmt: skip
    assert "stories-60" in page.sections[""]
    assert f"trial {chosen.id}" in page.sections[""], "the latest measured one, not the latest"
    asked = page.sections["asked"]
    assert "4 layers: 4 x kv4+ffn64" in asked
    assert "16 sequences, each 256 tokens of prompt and 1 generated token, in float32 on cpu (2 threads)" in asked
    assert "latency at most 60% of the parent's (3.10 ms)" in asked
    share = chosen.latency_ratio
    assert share is not None
    assert f"({share:.1%} ± {share * 0.0123:.1%})" in asked
    assert "undecided" in asked, "62.7 % ± 0.8 % may be within 2 % of 60 %"
    assert "9.4877" in page.sections["comparison"]
    assert f"{chosen.score:.4f}" in page.sections["comparison"]
    assert "1.050" in page.sections["agreement"], "measured over predicted latency"
    assert "1.250" in page.sections["agreement"], "measured over predicted KL"
    assert "Spearman" not in page.sections["agreement"], "two trials have no rank correlation"
    assert "memory" not in page.sections["agreement"].lower(), "memory is arithmetic: nothing measured to hold it to"
    (section,) = re.findall(r'<section id="agreement">.*?</section>', path.read_text(), re.DOTALL)
    lines = re.findall(r"<tr.*?</tr>", section, re.DOTALL)
    widths = [sum(int(span or 1) for span in re.findall(r'<t[hd](?: colspan="(\d+)")?', line)) for line in lines]
    assert widths == [9] * 4, "two heads and two trials"
    assert "0.0625" in page.sections["distillation"]
    assert "fuse(ffn64,ffn64)" in page.sections["distillation"]
    assert re.search(r"distil subblocks from the parent\s*2\s*92\.0 s\s*17 subblocks", page.sections["stages"])
    assert "worker died" in page.sections["failures"]
    assert '"least_squares": true' in page.sections["request"]


def test_the_heat_map_has_every_score_and_outlines_the_childs(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    chosen = add_trial(store, search, "latency=60%", 1.0)
    page = seen(write_report(store, search, tmp_path / "report.html"))

    for choice in choices():
        own = str(choice.what) in ("kv4", "ffn64")
        assert f"{choice}: " + ("the parent's own, 0 by definition" if own else repr(kl(choice))) in page.titles
    architecture = Architecture.parse(chosen.architecture)
    outlined = {title.partition(":")[0] for title in page.held}
    assert {str(choice) for choice in architecture.choices()} <= outlined
    # Any other that is outlined would change nothing: a dropped block spelled as one.
    assert all(architecture.with_(Choice.parse(choice)) == architecture for choice in outlined)


def test_three_trials_are_ranked(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    for budget in ("latency=80%", "latency=60%", "latency=45%"):
        trial = add_trial(store, search, budget, 1.0)
        store.update_trial(trial.id, kl_whole=1.5 * trial.score)
    page = seen(write_report(store, search, tmp_path / "report.html"))
    agreement = page.sections["agreement"]
    assert agreement.count("Spearman") == 3, "latency, score, and the sum of scores of whole architectures"
    assert agreement.count("1.000") >= 3
    assert "3 architectures were assembled" in agreement
    assert "The median ratio of the real KL to the sum of scores is 1.50" in agreement
    assert page.tags.count("svg") == 5, "front, agreement, sums, curves of subblocks and of healing"


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (0.98, "met"),
        (1.0, "undecided"),
        (1.0202, "undecided"),
        (1.2, "missed"),
        (None, "not measured"),
    ],
)
def test_the_measurement_is_held_against_the_budget(
    store: Store, tmp_path: Path, factor: float | None, verdict: str
) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    trial = add_trial(store, search, "latency=100%", None)
    whole_s = trial.predicted_latency_s
    if factor is not None:
        store.update_trial(trial.id, latency_s=factor * whole_s, latency_ratio=factor, latency_spread=0.02)
    assert [line.verdict for line in budget_lines(search, store.trial(trial.id))] == [verdict]
    limits = {"latency": "100%", "throughput": "200%", "memory": "1.0 B"}
    several = store.update_trial(trial.id, budget=limits, throughput=1.0, memory_bytes=1)
    throughput = "not measured" if factor is None else "missed"
    assert [line.verdict for line in budget_lines(search, several)] == [verdict, throughput, "met"]


def test_a_given_trial_is_shown(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    first = add_trial(store, search, "latency=80%", None)
    add_trial(store, search, "latency=60%", 1.0)
    page = seen(write_report(store, search, tmp_path / "report.html", first))
    assert f"trial {first.id}," in page.sections[""]
    assert "latency at most 80% of the parent's" in page.sections["asked"]
    assert "not measured" in page.sections["asked"]

    other = store.add_search(rows.search("other", request=search.request, scenario=search.scenario))
    with pytest.raises(ValueError, match=r"not one of search llama-60 \(other\)"):
        write_report(store, other, tmp_path / "report.html", first)


def test_the_page_stands_alone(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    add_trial(store, search, "latency=60%", 1.0)
    path = write_report(store, search, tmp_path / "report.html")
    page, text = seen(path), path.read_text()
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert page.references
    assert all(reference.startswith("#") for reference in page.references), "markers of the plots, in the page itself"
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {
        f"#{name}" for name in re.findall(r'<clipPath id="([^"]+)"', text)
    }
    for marker in page.references:
        assert f'id="{marker[1:]}"' in text
    assert not re.search(r"https?:|//[a-z]|@import", text)


def test_names_are_escaped(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path, name="<script>alert('x')</script>")
    store.add_failure(models.FailureRow(search_id=search.id, stage="search", place="<b>", reason='a < b & "c" <i>'))
    page = seen(write_report(store, search, tmp_path / "report.html"))
    assert "script" not in page.tags
    assert "<script>alert('x')</script>" in page.sections[""]
    assert 'a < b & "c" <i>' in page.sections["failures"]


def test_a_search_without_rows_says_so_in_every_section(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    page = seen(write_report(store, search, tmp_path / "report.html"))
    for section, words in {
        "asked": "latency at most 60% of the parent's",
        "comparison": "No trial yet",
        "architecture": "No trial yet",
        "front": "not completely measured",
        "agreement": "No trial was built",
        "scores": "No option is scored yet",
        "distillation": "Nothing is distilled yet",
        "stages": "No stage has ended yet",
        "failures": "There were no failures",
        "trials": "No trial yet",
    }.items():
        assert words in page.sections[section]
    assert "svg" not in page.tags


def test_a_measured_search_without_trials_has_its_front(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    page = seen(write_report(store, search, tmp_path / "report.html"))
    assert page.tags.count("svg") == 2, "front and curves"
    assert "none yet" in page.sections["scores"]


def test_the_same_rows_give_the_same_page(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    add_trial(store, search, "latency=60%", 1.0)
    pages = [write_report(store, search, tmp_path / name).read_text() for name in ("one.html", "two.html")]
    one, two = (re.sub(r"Written \S+ \S+ UTC", "", page) for page in pages)
    assert one == two
    assert sorted(path.name for path in tmp_path.glob("*html*")) == ["one.html", "two.html"], "nothing left beside"


def test_the_drawing_covers_every_slot_once() -> None:
    child = "kv2+ffn32 skip+fuse(ffn64,ffn32) linear+skip"
    drawn = drawing(Architecture.parse(PARENT), Architecture.parse(child))
    attention = [row.child[0] for row in drawn]
    ffn = [row.child[1] for row in drawn]
    assert [bar.kind for bar in attention if bar] == ["kv", "skip", "gone", "linear"]
    assert [(bar.label, bar.rows) if bar else None for bar in ffn] == [
        ("ffn32", 1), ("fuse(ffn64,ffn32)", 2), None, ("skip", 1),
    ]  # fmt: skip
    assert [bar.width for bar in ffn if bar] == [0.5, 0.75, 1.0]
    assert [bar.width for bar in attention if bar][:2] == [0.5, 1.0]
    assert all(bar.is_parents_own for row in drawn for bar in row.parent if bar)
    assert not any(bar.is_parents_own for row in drawn for bar in row.child if bar)


def test_rank_correlation() -> None:
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [10, 20, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_the_front_as_a_file(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    known = measured(store, search)
    points = front_of(known, "latency", (), 8)
    svg = write_front(known, "latency", points, tmp_path / "plots" / "front.svg")
    drawing = ElementTree.parse(svg)
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert "latency of the whole model" in words
    markers = [
        e for e in drawing.iter("{http://www.w3.org/2000/svg}use") if e.get("style", "").startswith("fill: #3b7dd8")
    ]
    assert len(markers) >= len(points)
    assert svg.read_bytes() == write_front(known, "latency", points, tmp_path / "again.svg").read_bytes()
    assert write_front(known, "latency", points, tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        write_front(known, "latency", points, tmp_path / "front.pdf")


def test_what_was_built_is_shown_before_what_was_only_timed(store: Store, tmp_path: Path) -> None:
    """A search may time several before it builds one, and a comparison times all of its answers."""
    search = add_search(store, tmp_path)
    add_measured(store, search)
    built = add_trial(store, search, "latency=60%", 1.0)
    timed = add_trial(store, search, "latency=50%", None)
    store.update_trial(timed.id, latency_s=1.0, latency_ratio=0.5)
    page = seen(write_report(store, search, tmp_path / "report.html"))
    assert f"shown beside the parent: trial {built.id}," in page.text


def test_scores_of_another_metric_are_held_against_nothing_of_this(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    add_trial(store, search, "latency=60%", 1.0)
    by_loss = measured(store, search, "lm_loss")
    other = store.add_trial(
        trial_row(by_loss, solve(by_loss, parse_budget("latency=60%")), parse_budget("latency=60%"), None)
    )
    other = store.update_trial(
        other.id, kl_before_heal=0.5, lm_loss_before_heal=2.5, details={"parent": {"lm_loss": 2.0}}
    )
    found = agreement(search, store.trials())
    assert found is not None
    assert [pair.trial for pair in found.score] == [1]
    assert [line.score[1] for line in found.lines if line.trial == other.id] == ["0.5000"]
    assert "with 1 trials" in write_report(store, search, tmp_path / "report.html").read_text()


def test_a_measurement_stands_beside_the_measured_parent_and_leaves_the_front_its_room(
    store: Store, tmp_path: Path
) -> None:
    """The same ratio on a day when the machine takes five times as long for both is the same measurement."""
    search = add_search(store, tmp_path)
    add_measured(store, search)
    trial = add_trial(store, search, "latency=60%", 1.0)
    page = write_report(store, search, tmp_path / "report.html")
    known = measured(store, search)
    points = front_of(known, "latency", (), 8)
    usual = write_front(known, "latency", points, tmp_path / "usual.svg", (), store.trials(search.id)).read_text()
    assert trial.latency_s is not None
    slow = {"parent": {"lm_loss": 2.0, "latency_s": 5 * known.parent_totals()["latency_s"]}, "metric": "kl"}
    store.update_trial(trial.id, latency_s=5 * trial.latency_s, details=slow)
    assert (
        usual == write_front(known, "latency", points, tmp_path / "slow.svg", (), store.trials(search.id)).read_text()
    ), "a ring where the ratio says"
    rows_of = [re.findall(r"<tr class=\"picked\">.*", path.read_text())[-1] for path in (
        page, write_report(store, search, tmp_path / "again.html"))]  # fmt: skip
    assert rows_of[0] == rows_of[1], "all trials"
    # Far outside, it is told at the edge.
    store.update_trial(trial.id, latency_ratio=4.6)
    far = write_front(known, "latency", points, tmp_path / "far.svg", (), store.trials(search.id))
    words = [e.text for e in ElementTree.parse(far).iter("{http://www.w3.org/2000/svg}text")]
    assert "measured 460%" in words
    shares = [word for word in words if word and word.endswith(" %")]
    assert max(int(share.removesuffix(" %")) for share in shares) <= 110


def test_the_front_as_a_file_says_what_it_is_of(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    first, second = (add_trial(store, search, budget, 1.0) for budget in ("latency=80%", "latency=60%"))
    add_trial(store, search, "latency=45%", None)
    known = measured(store, search)
    limits = parse_budget("memory=90%")
    points = front_of(known, "latency", limits, 8)
    drawn = ElementTree.parse(
        write_front(known, "latency", points, tmp_path / "front.svg", limits, store.trials(search.id))
    )
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "stories-60: score against latency" in words
    assert any(word and word.startswith("memory at most 90% of the parent's") for word in words)
    assert {"trial, measured", "chosen trial, measured"} <= set(words)
    assert f"trial {second.id}" in words
    assert f"trial {first.id}" not in words


def test_the_report_says_which_weights_were_kept(store: Store, tmp_path: Path) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    page = seen(write_report(store, search, tmp_path / "report.html"))
    assert "trained" in page.sections["distillation"]
    one = rows.distillation(
        "a", choice="L0.ffn=ffn32", loss_first_weights=0.5, loss_least_squares=0.375, loss_trained=0.4
    )
    two = rows.distillation(
        "b", choice="L1.ffn=ffn32", loss_first_weights=0.5, loss_least_squares=0.375, loss_trained=0.3
    )
    none = rows.distillation(
        "c", choice="L0.ffn=ffn16", loss_first_weights=0.5, loss_least_squares=None, loss_trained=None
    )
    fitted = rows.distillation(
        "d", choice="L0.ffn=ffn8", loss_first_weights=0.6, loss_least_squares=0.5, loss_trained=None
    )
    kept = {line.name: line.kept for line in lines([one, two, none, fitted])}
    assert kept == {
        "ffn32": "least squares 1 of 2, trained 1 of 2", "ffn16": "first weights", "ffn8": "least squares",
    }  # fmt: skip
