"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def part() -> list[sa.Column[Any]]:
    """A row of one run, in the run's own order."""
    return [
        sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
    ]


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        *(sa.Column(c, sa.Text, nullable=False) for c in ("created_utc", "device_name", "workload", "cell")),
        sa.Column("created_s", sa.Double, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        *(sa.Column(c, sa.Text) for c in ("error_kind", "error_message", "error_detail")),
        *(sa.Column(c, sa.JSON, nullable=False) for c in ("spec", "device", "engine", "software")),
        *(sa.Column(c, sa.JSON, nullable=False) for c in ("artefacts", "outputs", "warnings")),
        *(sa.Column(c, sa.Double) for c in ("offset_s", "offset_bound_s", "offset_drift", "offset_at_s")),
        sa.Column("offset_n", sa.Integer, nullable=False),
        sa.Column("items_file", sa.Text),
        sa.Column("items_n", sa.BigInteger, nullable=False),
        sa.Column("items_sha256", sa.Text),
    )
    for column in ("created_s", "device_name", "workload", "cell"):
        op.create_index(f"ix_runs_{column}", "runs", [column])
    op.create_table(
        "phases",
        *part(),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("end_s", sa.Double, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("clock", sa.Text, nullable=False),
    )
    op.create_table(
        "traces",
        *part(),
        sa.Column("meter", sa.Text, nullable=False),
        sa.Column("clock", sa.Text, nullable=False),
        sa.Column("channels", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
    )
    op.create_table(
        "measurements",
        *part(),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("uncertainty", sa.Double),
        *(sa.Column(c, sa.Text, nullable=False) for c in ("unit", "phase", "method", "meter", "boundary")),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("parts", sa.JSON, nullable=False),
    )
    op.create_index("ix_measurements_metric", "measurements", ["metric"])
    op.create_table(
        "flags",
        *part(),
        sa.Column("flag", sa.Text, nullable=False),
        sa.Column("voids", sa.JSON, nullable=False),
        sa.Column("is_voiding", sa.Boolean, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("meter", sa.Text, nullable=False),
    )
