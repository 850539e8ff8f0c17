"""Schemas of traffic reports."""

from __future__ import annotations

import csv
import io
import uuid

from pydantic import Field

from on_api.core.schemas.common import Answer, Moment
from on_api.core.services.traffic.reports import GroupBy, ReportTable
from on_api.core.services.traffic.sums import COUNTS, Kind
from on_api.core.setting_groups import GB, TrafficSettings

_NONE = "null if there is none, or it is unknown."


class TrafficCounts(Answer):
    """Counts of requests and bytes."""

    requests: int = Field(description="Requests answered; for uploads, files received.")
    unchanged: int = Field(description="The part of `requests` that was answered with 304.")
    failed: int = Field(
        description="The part of `requests` that was answered with an error, or cut off because"
        " of a budget."
    )
    bytes_out: int = Field(description="Bytes of response bodies sent.")
    bytes_in: int = Field(description="Bytes of files received.")


class TrafficItem(TrafficCounts):
    """Totals for one period and one value of `group_by`."""

    period: Moment = Field(
        description="The start of the period. Hours older than `ON_API_TRAFFIC__HOURS_KEPT` days"
        " are merged into the first hour of their day, and days older than"
        " `ON_API_TRAFFIC__DAYS_KEPT` days into the first day of their month."
    )
    file: uuid.UUID | None = Field(None, description=f"The file, with group_by=file; {_NONE}")
    cid: str | None = Field(None, description=f"The root CID, with group_by=cid; {_NONE}")
    key: uuid.UUID | None = Field(
        None, description=f"The key, with group_by=key; {_NONE} Login tokens do not count as keys."
    )
    share: uuid.UUID | None = Field(
        None, description=f"The share link, with group_by=share; {_NONE}"
    )
    user: uuid.UUID | None = Field(
        None, description="The owner of the content, with group_by=user; null if it has no owner."
    )
    kind: Kind | None = Field(
        None,
        description="The kind of traffic, with group_by=kind. `unattributed`: what a process may"
        " have sent before it was killed.",
    )


class Cost(Answer):
    """The cost of outgoing traffic at the operator's price."""

    amount: float = Field(description="The cost: bytes_out / 10^9 · price.", examples=[1.25])
    currency: str = Field(description="The currency as an ISO 4217 code.", examples=["EUR"])


class TrafficTotal(TrafficCounts):
    """Totals for the whole range."""

    cost: Cost | None = Field(
        None, description="The cost; only present if the operator has configured a price."
    )


class TrafficReport(Answer):
    """A traffic report."""

    items: list[TrafficItem] = Field(description="Totals by period and group.")
    total: TrafficTotal = Field(
        description="The totals of all items, including those beyond `limit`."
    )
    truncated: bool = Field(description="Whether there are more items than `limit`.")

    @classmethod
    def of(
        cls, report: ReportTable, group_by: GroupBy | None, settings: TrafficSettings
    ) -> TrafficReport:
        """Return a report as it is sent. Fields that don't belong to it are left unset."""
        items = [
            TrafficItem.model_validate(
                {"period": line.period, **line.counts}
                | ({} if group_by is None else {group_by.value: line.group})
            )
            for line in report.lines
        ]
        total = TrafficTotal.model_validate(report.total)
        if settings.price_per_gb is not None:
            amount = round(report.total["bytes_out"] / GB * settings.price_per_gb, 6)
            total.cost = Cost(amount=amount, currency=settings.currency)
        return cls(items=items, total=total, truncated=report.truncated)

    def as_csv(self, group_by: GroupBy | None) -> str:
        """Return the items as CSV (RFC 4180). Ids, CIDs and numbers only: nothing that a
        spreadsheet could take for a formula."""
        text = io.StringIO()
        names = ["period", *([] if group_by is None else [group_by.value]), *COUNTS]
        lines = csv.DictWriter(text, names, extrasaction="ignore")
        lines.writeheader()
        for item in self.items:
            lines.writerow(item.model_dump(mode="json"))
        return text.getvalue()
