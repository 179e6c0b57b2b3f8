"""The store's tables. What is searched has a column; facts, which nobody searches, are JSON.

A change here needs a migration in `migrations/versions` and its number in `schema.VERSION`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Json = dict[str, Any]


class Base(DeclarativeBase):
    """What all tables share: how a type is written in SQL."""

    type_annotation_map = {str: Text, float: Double}  # noqa: RUF012


class RunRecord(Base):
    """A run, its samples apart; `number` is the order in which runs were stored."""

    __tablename__ = "runs"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_utc: Mapped[str]
    created_s: Mapped[float] = mapped_column(index=True)  # the same as seconds since 1970, for order and search
    device_name: Mapped[str] = mapped_column(index=True)
    workload: Mapped[str] = mapped_column(index=True)
    cell: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int]
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    error_detail: Mapped[str | None]
    spec: Mapped[Json] = mapped_column(JSON)
    device: Mapped[Json] = mapped_column(JSON)
    engine: Mapped[Json] = mapped_column(JSON)
    software: Mapped[Json] = mapped_column(JSON)
    artefacts: Mapped[Json] = mapped_column(JSON)
    outputs: Mapped[Json] = mapped_column(JSON)  # name -> path below the store's folder
    warnings: Mapped[list[str]] = mapped_column(JSON)
    offset_s: Mapped[float | None]
    offset_bound_s: Mapped[float | None]
    offset_drift: Mapped[float | None]
    offset_at_s: Mapped[float | None]
    offset_n: Mapped[int]
    items_file: Mapped[str | None]
    items_n: Mapped[int] = mapped_column(BigInteger)
    items_sha256: Mapped[str | None]

    phases: Mapped[list[PhaseRecord]] = relationship(order_by="PhaseRecord.position")
    traces: Mapped[list[TraceRecord]] = relationship(order_by="TraceRecord.position")
    measurements: Mapped[list[MeasurementRecord]] = relationship(order_by="MeasurementRecord.position")
    flags: Mapped[list[FlagRecord]] = relationship(order_by="FlagRecord.position")


class _Part:
    """A row of one run, in the run's own order."""

    run: Mapped[int] = mapped_column(Integer, ForeignKey("runs.number"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)


class PhaseRecord(_Part, Base):
    __tablename__ = "phases"

    phase: Mapped[str]
    start_s: Mapped[float]
    end_s: Mapped[float]
    items: Mapped[int] = mapped_column(BigInteger)
    repeat: Mapped[int]
    clock: Mapped[str]


class TraceRecord(_Part, Base):
    """Where a meter's samples are; `facts` and `channels` stand here too, so that no file is opened for them."""

    __tablename__ = "traces"

    meter: Mapped[str]
    clock: Mapped[str]
    channels: Mapped[list[Json]] = mapped_column(JSON)
    facts: Mapped[Json] = mapped_column(JSON)
    file: Mapped[str]  # path below the store's folder
    n: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]


class MeasurementRecord(_Part, Base):
    __tablename__ = "measurements"
    __table_args__ = (Index("ix_measurements_metric", "metric"),)

    metric: Mapped[str]
    value: Mapped[float | None]  # None: not a number
    uncertainty: Mapped[float | None]
    unit: Mapped[str]
    phase: Mapped[str]
    n: Mapped[int] = mapped_column(BigInteger)
    method: Mapped[str]
    meter: Mapped[str]
    boundary: Mapped[str]
    parts: Mapped[Json] = mapped_column(JSON)


class FlagRecord(_Part, Base):
    __tablename__ = "flags"

    flag: Mapped[str]
    voids: Mapped[list[str]] = mapped_column(JSON)
    is_voiding: Mapped[bool]
    detail: Mapped[str]
    meter: Mapped[str]
