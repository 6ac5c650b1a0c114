"""The table of metrics, and what is held together with it by hand: the columns of a trial, and the job's template."""

import pytest
from sqlalchemy import BigInteger, Double

from cost_models.metrics import METRICS, Metric
from db.models import OF_THE_CHILD, OF_THE_HEALED, TrialRow
from db.rows import table_of
from nas.job.config import template

COLUMNS = dict(table_of(TrialRow).columns.items())


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_trial_has_the_columns_of_every_metric(metric: Metric) -> None:
    assert metric.columns <= COLUMNS.keys()
    kind = BigInteger if metric.unit.is_counted else Double
    assert all(isinstance(COLUMNS[name].type, kind) for name in (metric.predicted, metric.column))
    assert all(isinstance(COLUMNS[name].type, Double) for name in metric.columns - {metric.predicted, metric.column})


def test_a_trial_has_no_column_of_a_metric_there_is_not() -> None:
    """Whatever is predicted, but for the contention it was all taken under, is of the table."""
    of_the_table = {name for metric in METRICS.values() for name in metric.columns}
    stems = ("_ratio", "_spread", "_error_s")
    looks_like_one = {name for name in COLUMNS if name.startswith("predicted_") or name.endswith(stems)}
    assert looks_like_one - {"predicted_contention"} <= of_the_table


def test_twins_share_what_is_measured_of_a_metric_and_not_what_is_predicted() -> None:
    measured = {name for metric in METRICS.values() for name in metric.columns if not name.startswith("predicted_")}
    assert measured <= {*OF_THE_CHILD} - {*OF_THE_HEALED}


def test_the_job_template_shows_every_metric() -> None:
    budget = template().partition("budget:")[0]
    assert all(f" {name}: " in budget for name in METRICS)
