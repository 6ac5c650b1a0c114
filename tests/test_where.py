"""The language of `--where`: it agrees with Python wherever Python has an answer, and refuses the rest by name."""

import ast
import operator
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.errors import QueryError
from db.models import SearchRow, TrialRow
from db.store import Store
from db.where import LONGEST, column, condition

pytest_plugins = ["databases"]

FLOATS = ("score", "gap", "kl", "latency_ratio")
WHOLES = ("id", "memory_bytes", "predicted_parameters")
TEXTS = ("solver", "child_path")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """Trials whose columns are often equal, often zero and often empty."""
    draw = random.Random(0)
    request: dict[str, Any] = {"request": {}, "scenario": {}, "hardware": "cpu"}
    with Store.open(url) as store:
        store.add_search(
            SearchRow(
                id="s", name="s", parent="p", parent_digest="d", score_text="t", parent_architecture="a", **request
            )
        )
        for i in range(40):
            given: dict[str, Any] = {"budget": {}, "status": "optimal", "architecture": "a", "search_id": "s"}
            given |= {f"predicted_{name}": 1.0 for name in ("latency_s", "ttft_s", "decode_s", "throughput")}
            given |= {"score": draw.choice((0.0, 0.1, -1.5)), "solver": draw.choice(("mip", "greedy", "it's"))}
            given |= {name: draw.choice((None, 0.0, 0.1, 0.3, 2.0, -7.25)) for name in FLOATS[1:]}
            given |= {"memory_bytes": draw.choice((None, 0, 24 * 2**30)), "predicted_memory_bytes": 1}
            given |= {
                "predicted_parameters": draw.choice((0, 7 * 10**10, 1)),
                "child_path": draw.choice((None, "a", "")),
            }
            store.add_trial(
                TrialRow(key=f"t{i}", child_key=f"c{i}", created_at=datetime(2026, 1, 1 + i % 28, tzinfo=UTC), **given)
            )
        yield store


# Python's own answer, in the three values of SQL: an empty column is MISSING, so is a division by zero, and whether
# something compares with it is UNKNOWN.


class Missing:
    def _missing(self, _: object = None) -> "Missing":
        return self

    def _unknown(self, _: object) -> "Truth":
        return UNKNOWN

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _missing
    __neg__ = __pos__ = _missing
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _unknown
    __hash__ = None


@dataclass(frozen=True)
class Truth:
    """True, False or, as None, not known."""

    value: bool | None

    def __and__(self, other: "Truth") -> "Truth":
        values = {self.value, other.value}
        return Truth(False if False in values else None if None in values else True)

    def __or__(self, other: "Truth") -> "Truth":
        return ~(~self & ~other)

    def __invert__(self) -> "Truth":
        return Truth(None if self.value is None else not self.value)


MISSING, UNKNOWN = Missing(), Truth(None)


def truth(value: object) -> Truth:
    return value if isinstance(value, Truth) else Truth(bool(value))


class Spelled(ast.NodeTransformer):
    """`and`, `or`, `not`, chains and `in` as operations of Truth, which Python itself would cut short."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        join = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return self._joined([self.visit(part) for part in node.values], join)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        inner = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, inner)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        lefts = [node.left, *node.comparators[:-1]]
        steps = zip(lefts, node.ops, node.comparators, strict=True)
        return self._joined([self._step(*step) for step in steps], ast.BitAnd())

    def _step(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> ast.expr:
        if isinstance(op, ast.In | ast.NotIn):
            assert isinstance(right, ast.Tuple)
            alike = [self._step(left, ast.Eq(), item) for item in right.elts]
            found = self._joined(alike, ast.BitOr())
            return found if isinstance(op, ast.In) else ast.UnaryOp(ast.Invert(), found)
        compared = ast.Compare(self.visit(left), [op], [self.visit(right)])
        return ast.Call(ast.Name("truth", ast.Load()), [compared], [])

    def _joined(self, parts: list[ast.expr], op: ast.operator) -> ast.expr:
        found, *others = parts
        for other in others:
            found = ast.BinOp(found, op, other)
        return found


class Number(float):
    """A float that stays one through arithmetic, and knows what a division by zero is here."""

    def _then(self, compute: Any, left: Any, right: Any) -> Any:
        if isinstance(left, Missing) or isinstance(right, Missing):
            return MISSING
        if compute is operator.truediv and right == 0:
            return MISSING
        return Number(compute(float(left), float(right)))

    def __add__(self, other: Any) -> Any:
        return self._then(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._then(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._then(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._then(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._then(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._then(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._then(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._then(operator.truediv, other, self)

    def __neg__(self) -> Any:
        return Number(-float(self))


def pythons_answer(expression: str, trial: TrialRow) -> bool:
    names: dict[str, Any] = {"MISSING": MISSING, "truth": truth}
    for name in (*FLOATS, *WHOLES, *TEXTS):
        value = getattr(trial, name)
        names[name] = MISSING if value is None else Number(value) if isinstance(value, int | float) else value
    tree = Spelled().visit(ast.parse(expression.replace("None", "MISSING"), mode="eval"))
    answer = eval(compile(ast.fix_missing_locations(tree), expression, "eval"), {"__builtins__": {}}, names)
    assert isinstance(answer, Truth)
    return answer.value is True


number_columns = st.sampled_from(FLOATS + WHOLES)
literals = st.sampled_from(("0", "1", "0.1", "2.5e-1", "7_0", "1e9", "0x10", ".5"))
numbers = st.recursive(
    st.one_of(number_columns, literals),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
        st.builds("{} {} {}".format, number_columns, st.sampled_from("+-*"), number_columns),
        st.builds("{} / {}".format, inner, number_columns),
        st.builds("{}{}".format, st.sampled_from(("-", "+", "- -")), inner),
    ),
    max_leaves=5,
)
order = st.sampled_from(("<", "<=", ">", ">=", "==", "!="))
texts = st.sampled_from(("'mip'", '"greedy"', '"it\'s"', "''", "'a'", "'MIP'"))
comparisons = st.one_of(
    st.builds("{} {} {}".format, numbers, order, numbers),
    st.builds("{} {} {} {} {}".format, numbers, order, numbers, order, numbers),
    st.builds("{} {} {}".format, st.sampled_from(TEXTS), st.sampled_from(("==", "!=")), texts),
    st.builds("{} in ({}, {})".format, numbers, literals, literals),
    st.builds("solver {} ({}, {})".format, st.sampled_from(("in", "not in")), texts, texts),
    st.builds("{} {} None".format, st.one_of(numbers, st.sampled_from(TEXTS)), st.sampled_from(("is", "is not"))),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from(("and", "or")), inner),
        st.builds("({})".format, inner),
        st.builds("not {}".format, inner),
    ),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # Python's of `1 is None`
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(expression=conditions)
def test_the_database_agrees_with_python(store: Store, expression: str) -> None:
    expected = [trial.id for trial in store.trials() if pythons_answer(expression, trial)]
    assert [trial.id for trial in store.trials(where=expression)] == expected


TOKENS = (
    *("kl", "id", "solver", "created_at", "None", "True", "1", "1e999", "'x'", "(", ")", "[", "]", ",", "+", "-", "*"),
    *("/", "**", "<", "==", "in", "is", "not", "and", "or", "=", ".", "if"),
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from(TOKENS)).map(" ".join),
    )
)
def test_any_text_is_a_condition_or_a_query_error(text: str) -> None:
    with suppress(QueryError):
        condition(text)


def test_not_in_is_false_for_an_empty_column_as_every_comparison_is(store: Store) -> None:
    found = store.trials(where="child_path not in ('a', 'b')")
    assert {trial.child_path for trial in found} == {""}


def test_not_says_nothing_of_an_empty_column(store: Store) -> None:
    every = store.trials()
    assert {trial.kl is None for trial in every} == {True, False}

    def kls(expression: str) -> set[float | None]:
        return {trial.kl for trial in store.trials(where=expression)}

    assert kls("not kl < 0.2") == kls("kl >= 0.2") == {0.3, 2.0}
    assert None not in kls("not (kl < 0.2 and score < 9)")
    assert None in kls("not (kl < 0.2 and score > 9)"), "the score alone decides"
    assert kls("not kl is not None") == kls("kl is None") == {None}
    assert kls("not 1 / kl < 9") == {0.1}, "nor does a division by zero"


def test_moments(store: Store) -> None:
    def days(expression: str) -> set[int]:
        return {trial.created_at.day for trial in store.trials(where=expression)}

    assert days("created_at < '2026-01-03'") == {1, 2}
    assert days("'2026-01-26' < created_at <= '2026-01-28T00:00:00+00:00'") == {27, 28}
    assert days("created_at == '2026-01-05T09:00+09:00'") == {5}
    assert days("created_at in ('2026-01-05', '2026-01-06')") == {5, 6}
    assert days("'2026-01-05' in (created_at,)") == {5}
    assert days("'2026-01-05' not in (created_at, '2026-01-07')") == days("created_at != '2026-01-05'")


def test_what_a_string_says_stays_a_string(store: Store) -> None:
    assert store.trials(where="""solver == "x' OR 1=1 --" """) == []
    assert len(store.trials()) == 40


@pytest.mark.parametrize(
    ("expression", "message", "under"),
    [
        ("latncy_s < 1", "no column 'latncy_s'; did you mean latency_s?", "latncy_s"),
        ("kl < 1 and zzz > 2", "no column 'zzz'", "zzz"),
        ("details == 'x'", "no column 'details'", "details"),
        ("kl", "this is a value, not a condition", "kl"),
        ("not (kl + 1)", "this is a value, not a condition", "kl + 1"),
        ("kl < solver", "this is a text, but it is compared with a number", "solver"),
        ("solver < 'b'", "text has no order here", "'b'"),
        ("kl + solver < 1", "arithmetic needs numbers", "solver"),
        ("kl == None", "None compares with `is None`", "None"),
        ("kl is 3", "`is` asks for None only", "3"),
        ("solver in ('mip')", "`in` needs a list", "'mip'"),
        ("solver in ()", "`in` needs a list", "()"),
        ("solver in ('mip', 3)", "this is a number, but it is compared with a text", "3"),
        ("created_at > 'soon'", "this is not a moment", "'soon'"),
        ("created_at > 3", "this is a number, but it is compared with a moment", "3"),
        ("kl < True", "this is not part of the language", "True"),
        ("kl < 1j", "this is not part of the language", "1j"),
        ("kl < 1e999", "this number is too large", "1e999"),
        ("kl ** 2 < 1", "this is not part of the language", "kl ** 2"),
        ("__import__('os').system('id') == 0", "this is not part of the language", "__import__('os').system('id')"),
        ("solver == f'{kl}'", "this is not part of the language", "f'{kl}'"),
        ("[kl for kl in (1,)]", "this is not part of the language", "[kl for kl in (1,)]"),
        ("solver == 'é' and klx < 1", "no column 'klx'; did you mean kl?", "klx"),
        ("kl < 1 and (\nkl.real > 2)", "this is not part of the language", "kl.real"),
    ],
)
def test_a_mistake_is_pointed_at(expression: str, message: str, under: str) -> None:
    with pytest.raises(QueryError) as error:
        condition(expression)
    first, line, carets = str(error.value).splitlines()[:3]
    assert message in first
    assert line[carets.index("^") : carets.rindex("^") + 1] == under


@pytest.mark.parametrize(
    "expression", ["kl = 1", "kl <", "kl < 1; kl", "(kl < 1", "kl <> 1", "kl < 1 AND kl > 0", "x := 1"]
)
def test_what_is_not_even_python_is_shown_with_a_caret(expression: str) -> None:
    with pytest.raises(QueryError, match="this is not a condition") as error:
        condition(expression)
    assert expression in str(error.value)
    assert "^" in str(error.value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the condition is empty"),
        ("  ", "the condition is empty"),
        ("kl < 1 or " * 300 + "kl < 1", f"{LONGEST} are the most"),
        ("-" * 100 + "kl < 1", "nested more than 50 deep"),
        ("(" * 900 + "kl < 1", "this is not a condition"),
        ("kl < 1" + "0" * 1000, "this number is too large"),
    ],
)
def test_conditions_too_small_and_too_large(expression: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        condition(expression)


def test_the_longest_condition_runs(store: Store) -> None:
    expression = "id<" * ((LONGEST - 2) // 3) + "id"
    assert store.trials(where=expression) == []


def test_an_unknown_column_lists_all() -> None:
    with pytest.raises(QueryError, match="did you mean latency_ratio") as error:
        column("latency_ration")
    assert "columns: id, key, child_key, search_id, created_at, solver," in str(error.value)
