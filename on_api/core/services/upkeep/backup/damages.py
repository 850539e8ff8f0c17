"""Contents that are not whole, as a backup, its verification and its restoration report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from on_api.core.services.upkeep.backup.saved_rows import Needed, SavedRows

MOST_DAMAGES = 1000
"""Damaged contents of a run that are named; more are counted."""
MOST_TROUBLES = 20
"""Damaged blocks named of one DAG."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A content that is not whole, and who needs it."""

    cid: str
    troubles: Sequence[str]
    references: Sequence[str]


def add_damage(damages: list[Damage], cid: str, troubles: Sequence[str], rows: SavedRows) -> None:
    """Name a damaged content, unless `MOST_DAMAGES` are named already."""
    if len(damages) < MOST_DAMAGES:
        damages.append(Damage(cid, troubles, rows.references(cid)))


@dataclass
class DamageReport:
    """Damaged contents that a run has found."""

    damaged: int = 0
    """Contents that somebody holds and that are not whole."""
    thin_bundles: int = 0
    """Bundles that are not whole; their members are handled by themselves."""
    damages: list[Damage] = field(default_factory=list)
    """The first of the damaged contents, up to `MOST_DAMAGES`."""

    def note(self, content: Needed, troubles: Sequence[str], rows: SavedRows) -> None:
        """Count a content that is not whole, and name it if somebody holds it."""
        if not content.held:
            self.thin_bundles += 1
            return
        self.damaged += 1
        add_damage(self.damages, content.cid, troubles, rows)
