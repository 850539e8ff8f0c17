"""The object graph: all services of a process, built once from settings, for the web application
and the commands."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from on_api.core.crypto.kdf import Scrypt
from on_api.core.crypto.secrets import Keyring, Purpose
from on_api.core.ipfs.gateway_client.gateway import NodeGateway
from on_api.core.ipfs.measured import MeasuredNode
from on_api.core.ipfs.port import IpfsNode
from on_api.core.metrics import Metrics
from on_api.core.models import Database
from on_api.core.models.invalidation import Invalidations
from on_api.core.models.statement_spans import trace_statements
from on_api.core.pagination import CursorSigner
from on_api.core.services.accounts.authentication import Authenticator
from on_api.core.services.accounts.container import Accounts
from on_api.core.services.accounts.idempotency import IdempotencyService
from on_api.core.services.accounts.key_lookups import KeyLookups
from on_api.core.services.accounts.keys import KeyService
from on_api.core.services.accounts.logins import LoginService
from on_api.core.services.accounts.master_secret import RowSealer
from on_api.core.services.accounts.presence import Presence
from on_api.core.services.accounts.scrypt_pool import ScryptPool
from on_api.core.services.accounts.strangers import Strangers
from on_api.core.services.accounts.throttling import Throttle
from on_api.core.services.accounts.users import UserService
from on_api.core.services.content.capacity import Capacity
from on_api.core.services.content.leases import UPLOAD, LeaseService
from on_api.core.services.content.pin_names import PinNames
from on_api.core.services.content.pin_reconciler import PinReconciler
from on_api.core.services.content.private_blocks import PrivateBlocks
from on_api.core.services.content.standing_lease import StandingLease
from on_api.core.services.files.file_answers import FileAnswers
from on_api.core.services.files.identities import IdentityService
from on_api.core.services.files.private_files import PrivateFiles
from on_api.core.services.files.reading import FileReader
from on_api.core.services.files.sealed_headers import SealedHeaders
from on_api.core.services.files.visibility import VisibilityService
from on_api.core.services.gateway.policy import GatewayPolicy
from on_api.core.services.pins.pins import PinService
from on_api.core.services.shared.rate_limits import RateLimits
from on_api.core.services.shared.wakeup import Wakeup
from on_api.core.services.shares.shares import ShareService
from on_api.core.services.traffic.accelerated import AcceleratedAnswers
from on_api.core.services.traffic.egress import EgressLedger
from on_api.core.services.traffic.metering import Meter
from on_api.core.services.transfer.cars import CarImports
from on_api.core.services.transfer.imports import ImportService
from on_api.core.services.upkeep.figures import InstanceFigures
from on_api.core.services.upkeep.fsck.runner import Fsck
from on_api.core.services.upkeep.garbage import GarbageCollector
from on_api.core.services.upkeep.node import connect_node
from on_api.core.services.upkeep.node_adoption import RecordedNode
from on_api.core.services.upkeep.node_watch import NodeWatch
from on_api.core.services.upkeep.readiness import ReadinessChecks
from on_api.core.services.uploads.bundle_records import BundleRecords
from on_api.core.services.uploads.bundling import Bundler
from on_api.core.services.uploads.intake import Intake, IntakeLimits
from on_api.core.services.uploads.uploads import UploadService
from on_api.core.settings import Settings
from on_api.core.streams.blocks import BufferPool
from on_api.core.tracing import Tracing

HASHING_THREADS = 4


@dataclass(frozen=True)
class Services:
    """Services of one process. Thread-safe; `close` releases their resources."""

    settings: Settings
    keyring: Keyring
    scrypt: Scrypt
    scrypt_pool: ScryptPool
    strangers: Strangers
    database: Database
    node: IpfsNode
    node_gateway: NodeGateway
    gateway: GatewayPolicy
    private_blocks: PrivateBlocks
    invalidations: Invalidations
    presence: Presence
    authenticator: Authenticator
    key_lookups: KeyLookups
    login: LoginService
    users: UserService
    keys: KeyService
    identities: IdentityService
    private_files: PrivateFiles
    headers: SealedHeaders
    reader: FileReader
    file_answers: FileAnswers
    visibility: VisibilityService
    uploads: UploadService
    shares: ShareService
    meter: Meter
    accelerated: AcceleratedAnswers
    rate_limits: RateLimits
    """Limits of the gateway."""
    api_limits: RateLimits
    pins: PinService
    imports: ImportService
    cars: CarImports
    reconciler: PinReconciler
    names: PinNames
    leases: LeaseService
    capacity: Capacity
    readiness: ReadinessChecks
    figures: InstanceFigures
    fsck: Fsck
    garbage: GarbageCollector
    watch: NodeWatch
    wakeup: Wakeup
    cursors: CursorSigner
    idempotency: IdempotencyService
    metrics: Metrics
    tracing: Tracing | None
    """None unless traces are switched on."""
    hashers: ThreadPoolExecutor
    buffer_pool: BufferPool
    """Memory that all uploads under way share."""
    pins_doubtful: threading.Event
    """Set while the node's pins have to be checked."""

    @classmethod
    def build(
        cls, settings: Settings, node: IpfsNode | None = None, *, records_node: bool = True
    ) -> Services:
        """Build all services. Opens no connection.

        Without a `node`, connects to the Kubo that the settings name; see `RecordedNode` for
        `records_node`. Without a master secret everything that needs none still works;
        `keyring.problem` gives the reason.
        """
        accounts = Accounts.build(settings)
        keyring, scrypt, hasher = accounts.keyring, accounts.scrypt, accounts.hasher
        database, invalidations = accounts.database, accounts.invalidations
        pool = ScryptPool(scrypt, settings.auth, settings.max_requests // 2)
        throttle = Throttle(database, settings.auth)
        strangers = Strangers(settings.threads)
        metrics = _watched(database, pool)
        tracing = Tracing() if settings.otel else None
        if tracing is not None:
            trace_statements(database.engine, tracing)
        if node is None:
            node = connect_node(settings, RecordedNode(database, records=records_node))
        node = MeasuredNode(node, metrics, tracing)
        identities = IdentityService(keyring)
        private_files = PrivateFiles(
            database,
            identities,
            keyring,
            scrypt,
            pool,
            throttle,
            strangers,
            settings.auth.passphrase_log_n,
        )
        hashers = ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="on-api-sha256")
        idempotency = IdempotencyService(
            database, RowSealer(keyring, Purpose.ANSWERS), settings.files.lease_seconds
        )
        capacity = Capacity(node, settings)
        node_gateway = NodeGateway(settings, tracing)
        names = PinNames(database)
        reconciler = PinReconciler(database, node, names, settings.worker.lease_seconds)
        lease_life = timedelta(seconds=settings.files.lease_seconds)
        quarantine = timedelta(seconds=settings.gc.quarantine)
        headers = SealedHeaders(database, node, identities)
        fsck = Fsck(database, node, reconciler, names, headers, quarantine)
        wakeup = Wakeup(invalidations)
        leases = LeaseService(database, names, settings.files.lease_seconds, wakeup.wake_after)
        ledger = EgressLedger(database, settings.traffic)
        meter = Meter(ledger, invalidations, settings.traffic, metrics)
        pins = PinService(database, timedelta(seconds=settings.pins.deadline), wakeup.wake_after)
        buffer_pool = BufferPool()
        limits = IntakeLimits(settings.files.max_size, buffer_pool)
        doubtful = threading.Event()
        doubtful.set()  # the node's last end is not known
        authenticator = Authenticator(database, keyring, invalidations)
        return cls(
            settings=settings,
            keyring=keyring,
            scrypt=scrypt,
            scrypt_pool=pool,
            strangers=strangers,
            database=database,
            node=node,
            node_gateway=node_gateway,
            gateway=GatewayPolicy(database, invalidations, settings.gateway),
            private_blocks=PrivateBlocks(database, node, strangers),
            invalidations=invalidations,
            presence=Presence(database, keyring, invalidations),
            authenticator=authenticator,
            key_lookups=KeyLookups(authenticator, strangers),
            login=LoginService(database, hasher, pool, throttle, accounts.keys, settings.auth),
            users=accounts.users,
            keys=accounts.keys,
            identities=identities,
            private_files=private_files,
            headers=headers,
            reader=FileReader(node, private_files, hashers),
            file_answers=FileAnswers(database, invalidations, settings.files.answers_bytes),
            visibility=VisibilityService(leases, wakeup.wake_after),
            uploads=UploadService(
                database,
                node,
                reconciler,
                leases,
                capacity,
                hashers,
                limits,
                metrics,
                idempotency,
                private_files,
                meter,
                Bundler(
                    node,
                    BundleRecords(database, idempotency),
                    StandingLease(database, names, UPLOAD, lease_life, wakeup.wake_after),
                    metrics,
                    settings.files.bundle_below,
                ),
            ),
            shares=ShareService(database, hasher, pool, throttle),
            meter=meter,
            accelerated=AcceleratedAnswers(database, ledger, metrics),
            rate_limits=RateLimits.of_gateway(settings.gateway, metrics),
            api_limits=RateLimits.of_api(settings.limits, metrics),
            pins=pins,
            imports=ImportService(
                keyring, pins, wakeup.wake_after, allow_private=settings.imports.allow_private
            ),
            cars=CarImports(
                database,
                node,
                reconciler,
                leases,
                capacity,
                pins,
                lambda lease: Intake(lease, leases, capacity, hashers, limits),
                idempotency,
                limits,
                settings.files.lease_seconds,
            ),
            reconciler=reconciler,
            names=names,
            leases=leases,
            capacity=capacity,
            figures=InstanceFigures(settings, database, node),
            readiness=ReadinessChecks(database, node, capacity, invalidations, keyring),
            fsck=fsck,
            garbage=GarbageCollector(database, node, fsck, metrics),
            watch=NodeWatch(settings, database, node),
            wakeup=wakeup,
            cursors=CursorSigner(lambda: keyring.subkeys(Purpose.CURSORS)),
            idempotency=idempotency,
            metrics=metrics,
            tracing=tracing,
            hashers=hashers,
            buffer_pool=buffer_pool,
            pins_doubtful=doubtful,
        )

    def distrust_pins(self) -> None:
        """Have the worker look for pins that the node has lost: it may have died while renewing
        some."""
        self.pins_doubtful.set()
        self.wakeup.wake()

    async def close(self) -> None:
        """Close connections and stop threads."""
        await self.uploads.close()
        await self.readiness.close()
        await self.figures.close()
        await self.node.close()
        await self.node_gateway.close()
        self.hashers.shutdown()
        self.scrypt_pool.close()
        self.database.dispose()


def _watched(database: Database, pool: ScryptPool) -> Metrics:
    """Create metrics that also show what waits for the database and for scrypt."""
    metrics = Metrics()
    metrics.watch(
        "on_api_database_connections_in_use",
        "Database connections in use.",
        database.connections_in_use,
    )
    metrics.watch(
        "on_api_database_writers_waiting",
        "Transactions waiting for SQLite's single writer.",
        database.writers_waiting,
    )
    metrics.watch(
        "on_api_passwords_waiting",
        "Passwords and passphrases that are waiting for scrypt or being hashed.",
        lambda: pool.waiting,
    )
    return metrics
