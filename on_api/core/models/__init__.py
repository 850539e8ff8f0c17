"""Every table, so that importing the package fills `Base.metadata` (Alembic and the mappers rely
on it)."""

from on_api.core.models.content import (
    Content,
    Deployment,
    Holding,
    Lease,
    LeasedPin,
    Maintenance,
    QuarantinedPin,
)
from on_api.core.models.database import Base, Database
from on_api.core.models.denied import DeniedCid
from on_api.core.models.event import Event
from on_api.core.models.file import File, VisibilityChange
from on_api.core.models.idempotency import IdempotencyRecord
from on_api.core.models.imports import Import, ImportItem
from on_api.core.models.key import ApiKey
from on_api.core.models.pin import Pin
from on_api.core.models.private_block import PrivateBlock
from on_api.core.models.process import Process, SecretInUse
from on_api.core.models.share import Share
from on_api.core.models.throttle import PasswordThrottle
from on_api.core.models.traffic import (
    AccelCharge,
    EgressCounter,
    EgressCredit,
    MeteringProcess,
    Traffic,
    TrafficTotal,
)
from on_api.core.models.user import AuditEvent, Identity, User, UserUsage

__all__ = [
    "AccelCharge",
    "ApiKey",
    "AuditEvent",
    "Base",
    "Content",
    "Database",
    "DeniedCid",
    "Deployment",
    "EgressCounter",
    "EgressCredit",
    "Event",
    "File",
    "Holding",
    "IdempotencyRecord",
    "Identity",
    "Import",
    "ImportItem",
    "Lease",
    "LeasedPin",
    "Maintenance",
    "MeteringProcess",
    "PasswordThrottle",
    "Pin",
    "PrivateBlock",
    "Process",
    "QuarantinedPin",
    "SecretInUse",
    "Share",
    "Traffic",
    "TrafficTotal",
    "User",
    "UserUsage",
    "VisibilityChange",
]
