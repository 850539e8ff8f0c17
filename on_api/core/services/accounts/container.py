"""The part of the object graph that accounts and their keys need. Commands about accounts build
only this part, at less than half the cost."""

from __future__ import annotations

from dataclasses import dataclass

from on_api.core.crypto.kdf import Scrypt
from on_api.core.crypto.passwords import PasswordHasher
from on_api.core.crypto.secrets import Keyring
from on_api.core.errors import StartupError
from on_api.core.models import Database
from on_api.core.models.invalidation import Invalidations
from on_api.core.services.accounts.keys import KeyService
from on_api.core.services.accounts.users import UserService
from on_api.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Accounts:
    """Services of users and keys, and their dependencies. Thread-safe."""

    settings: Settings
    keyring: Keyring
    scrypt: Scrypt
    hasher: PasswordHasher
    database: Database
    invalidations: Invalidations
    keys: KeyService
    users: UserService

    @classmethod
    def build(cls, settings: Settings) -> Accounts:
        """Build the services. Opens no connection.

        Without a master secret everything that needs none still works; `keyring.problem` gives the
        reason.
        """
        try:
            keyring = Keyring.load(settings)
        except StartupError as error:
            keyring = Keyring.without_secret(error.details)
        database = Database(settings)
        invalidations = Invalidations(database)
        scrypt = Scrypt.load(settings)
        hasher = PasswordHasher(scrypt, log_n=settings.auth.scrypt_log_n)
        keys = KeyService(keyring, invalidations)
        users = UserService(hasher, keys, invalidations, settings.limits)
        return cls(settings, keyring, scrypt, hasher, database, invalidations, keys, users)
