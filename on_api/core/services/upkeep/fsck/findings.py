"""Findings of `fsck`, and its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

MOST_KEPT_FINDINGS = 10_000
"""Findings that are listed; all are counted."""


class FindingKind(StrEnum):
    """Kind of difference between database and node."""

    MISSING_PIN = "missing_pin"
    DAMAGED_DAG = "damaged_dag"
    ORPHAN_PIN = "orphan_pin"
    FOREIGN_PIN = "foreign_pin"
    DEAD_LEASE = "dead_lease"
    WRONG_STATE = "wrong_state"
    WRONG_COUNT = "wrong_count"
    CLOSED_FILE = "closed_file"


MEANINGS = {
    FindingKind.MISSING_PIN: "content that is in use is not pinned on the node",
    FindingKind.DAMAGED_DAG: "blocks of pinned content are missing or damaged",
    FindingKind.ORPHAN_PIN: "a pin of on-api that no database row refers to",
    FindingKind.FOREIGN_PIN: "a pin that on-api did not create; it is ignored",
    FindingKind.DEAD_LEASE: "work that was interrupted by a crash is still marked as running",
    FindingKind.WRONG_STATE: "the state of a content does not match the references to it",
    FindingKind.WRONG_COUNT: "a counter differs from the actual number",
    FindingKind.CLOSED_FILE: "a private file lacks the information that is needed to decrypt it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference found. `subject` is a CID or a row's id."""

    kind: FindingKind
    subject: str
    details: str
    mended: bool = False
    due_at: datetime | None = None
    """Earliest time at which a pin in quarantine may be ended."""
    deferred: bool = False
    """True if its repair has to wait for `due_at`."""

    @property
    def is_trouble(self) -> bool:
        """True if it breaks a promise as it stands."""
        return self.kind is not FindingKind.FOREIGN_PIN and not self.mended and not self.deferred


@dataclass
class FsckReport:
    """All findings of a run, and the amounts checked."""

    contents: int = 0
    pins: int = 0
    blocks: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: dict[FindingKind, int] = field(default_factory=dict)
    """Number of findings by kind."""
    troubles: int = 0
    """Number of troubles that are left."""
    deferred: int = 0
    """Pins left in quarantine."""
    lost: dict[str, str] = field(default_factory=dict)
    """Contents that could not be repaired: what is missing, by CID."""

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are too many."""
        self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        self.troubles += finding.is_trouble
        self.deferred += finding.deferred
        about_content = {FindingKind.MISSING_PIN, FindingKind.DAMAGED_DAG, FindingKind.WRONG_STATE}
        if finding.kind in about_content and not finding.mended:
            self.lost[finding.subject] = finding.details
        if len(self.findings) < MOST_KEPT_FINDINGS:
            self.findings.append(finding)

    @property
    def clean(self) -> bool:
        """True if no trouble is left."""
        return self.troubles == 0
