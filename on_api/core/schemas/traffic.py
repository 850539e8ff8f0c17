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

_NONE = "null: none, or not known."


class TrafficCounts(Answer):
    """Requests and bytes that were counted."""

    requests: int = Field(description="Requests answered; of uploads, files.")
    unchanged: int = Field(description="Of these, answered 304.")
    failed: int = Field(description="Of these, answered with an error or cut by a budget.")
    bytes_out: int = Field(description="Bytes of bodies sent.")
    bytes_in: int = Field(description="Bytes of files received.")


class TrafficItem(TrafficCounts):
    """Sums of one period, and of one of what `group_by` names."""

    period: Moment = Field(
        description="When it begins. Hours older than `ON_API_TRAFFIC__HOURS_KEPT` days are in "
        "their day's first, days older than `ON_API_TRAFFIC__DAYS_KEPT` in their month's."
    )
    file: uuid.UUID | None = Field(None, description=f"With group_by=file; {_NONE}")
    cid: str | None = Field(None, description=f"With group_by=cid; {_NONE}")
    key: uuid.UUID | None = Field(
        None, description=f"With group_by=key; {_NONE} Logins' tokens are none."
    )
    share: uuid.UUID | None = Field(None, description=f"With group_by=share; {_NONE}")
    user: uuid.UUID | None = Field(
        None, description="With group_by=user: whose content; null: nobody's."
    )
    kind: Kind | None = Field(
        None,
        description="With group_by=kind. `unattributed`: what a process that was killed may have "
        "sent.",
    )


class Cost(Answer):
    """Cost of the bytes that went out, by the operator's price."""

    amount: float = Field(description="bytes_out / 10^9 · price.", examples=[1.25])
    currency: str = Field(description="ISO 4217.", examples=["EUR"])


class TrafficTotal(TrafficCounts):
    """Sums of the whole range."""

    cost: Cost | None = Field(None, description="Where the operator has set a price.")


class TrafficReport(Answer):
    """A report."""

    items: list[TrafficItem] = Field(description="Sums by period and group.")
    total: TrafficTotal = Field(description="Of all items, those over `limit` included.")
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
