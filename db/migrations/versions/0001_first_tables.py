"""The first tables.

Written in types of its own rather than the models', which move on: a revision says what it built, for ever.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    measured()
    search()
    trial()
    stage_and_failure()


def measured() -> None:
    op.create_table(
        "score",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("kl", sa.Double(), nullable=False),
        sa.Column("lm_loss", sa.Double(), nullable=False),
        sa.Column("top1_agreement", sa.Double(), nullable=False),
        sa.Column("hidden_cosine", sa.Double(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_score"),
    )
    op.create_table(
        "cost",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefill_s", sa.Double(), nullable=False),
        sa.Column("decode_s", sa.Double(), nullable=False),
        sa.Column("spread", sa.Double(), nullable=False),
        sa.Column("parameters", WHOLE, nullable=False),
        sa.Column("active_parameters", WHOLE, nullable=False),
        sa.Column("weight_bytes", WHOLE, nullable=False),
        sa.Column("prefill_bytes", WHOLE, nullable=False),
        sa.Column("decode_bytes", WHOLE, nullable=False),
        sa.Column("cache_bytes", WHOLE, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_cost"),
    )
    op.create_table(
        "distillation",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("tokens", WHOLE, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("loss_first_weights", sa.Double(), nullable=False),
        sa.Column("loss_least_squares", sa.Double(), nullable=True),
        sa.Column("loss_trained", sa.Double(), nullable=True),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_distillation"),
    )


def search() -> None:
    op.create_table(
        "search",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("parent_digest", sa.Text(), nullable=False),
        sa.Column("parent_architecture", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("scenario", sa.JSON(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("parent_costs", sa.JSON(), nullable=False),
        sa.Column("dependency", sa.JSON(), nullable=True),
        sa.Column("removal", sa.JSON(), nullable=True),
        sa.CheckConstraint("status IN ('running', 'finished', 'failed', 'interrupted')", name=op.f("ck_search_status")),
        sa.PrimaryKeyConstraint("id", name="pk_search"),
    )
    op.create_table(
        "option",
        sa.Column("search_id", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("first_slot", WHOLE, nullable=False),
        sa.Column("span", WHOLE, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("score_key", sa.Text(), nullable=True),
        sa.Column("cost_key", sa.Text(), nullable=True),
        sa.Column("distillation_key", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["score_key"], ["score.key"], name="fk_option_score_key"),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_option_search_id"),
        sa.PrimaryKeyConstraint("search_id", "choice", name="pk_option"),
    )


def trial() -> None:
    op.create_table(
        "trial",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("child_key", sa.Text(), nullable=False),
        sa.Column("search_id", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("solver", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("budget", sa.JSON(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("bound", sa.Double(), nullable=True),
        sa.Column("gap", sa.Double(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("predicted_latency_s", sa.Double(), nullable=False),
        sa.Column("predicted_ttft_s", sa.Double(), nullable=False),
        sa.Column("predicted_decode_s", sa.Double(), nullable=False),
        sa.Column("predicted_throughput", sa.Double(), nullable=False),
        sa.Column("predicted_memory_bytes", WHOLE, nullable=False),
        sa.Column("predicted_parameters", WHOLE, nullable=False),
        sa.Column("latency_s", sa.Double(), nullable=True),
        sa.Column("latency_ratio", sa.Double(), nullable=True),
        sa.Column("latency_spread", sa.Double(), nullable=True),
        sa.Column("ttft_s", sa.Double(), nullable=True),
        sa.Column("decode_s", sa.Double(), nullable=True),
        sa.Column("throughput", sa.Double(), nullable=True),
        sa.Column("memory_bytes", WHOLE, nullable=True),
        sa.Column("parameters", WHOLE, nullable=True),
        sa.Column("kl_whole", sa.Double(), nullable=True),
        sa.Column("kl_before_heal", sa.Double(), nullable=True),
        sa.Column("lm_loss_before_heal", sa.Double(), nullable=True),
        sa.Column("kl", sa.Double(), nullable=True),
        sa.Column("lm_loss", sa.Double(), nullable=True),
        sa.Column("perplexity", sa.Double(), nullable=True),
        sa.Column("top1_agreement", sa.Double(), nullable=True),
        sa.Column("hidden_cosine", sa.Double(), nullable=True),
        sa.Column("heal_tokens", WHOLE, nullable=True),
        sa.Column("child_path", sa.Text(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_trial_search_id"),
        sa.PrimaryKeyConstraint("id", name="pk_trial"),
        sa.UniqueConstraint("key", name="uq_trial_key"),
    )
    op.create_index("ix_trial_search_id", "trial", ["search_id"])
    op.create_index("ix_trial_child_key", "trial", ["child_key"])


def stage_and_failure() -> None:
    op.create_table(
        "stage",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("search_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("work_done", WHOLE, nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_stage_search_id"),
        sa.PrimaryKeyConstraint("id", name="pk_stage"),
    )
    op.create_index("ix_stage_search_id", "stage", ["search_id"])
    op.create_table(
        "failure",
        sa.Column("id", WHOLE, nullable=False),
        sa.Column("search_id", sa.Text(), nullable=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["search_id"], ["search.id"], name="fk_failure_search_id"),
        sa.PrimaryKeyConstraint("id", name="pk_failure"),
    )
    op.create_index("ix_failure_search_id", "failure", ["search_id"])
