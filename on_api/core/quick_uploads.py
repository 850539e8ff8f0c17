"""Small uploads without a scope, a task or the framework, when on-api's own server has received one
as a whole: it is handed to the bundle that is being gathered, and answered when that is recorded.

What is unusual about a request, and every request that would be refused or goes alone, is left to
the usual way, which words it. Knows nothing of connections.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import NamedTuple

from on_api.core.dependencies import bearer_key
from on_api.core.error_handlers import ErrorHandlers
from on_api.core.errors import BadRequest, OnApiError
from on_api.core.logging import request_id
from on_api.core.middleware import NOSNIFF, REQUEST_ID, Places, RequestRecord, new_request_id
from on_api.core.models.file import PRIVATE
from on_api.core.plain import read_query
from on_api.core.schemas.files import File
from on_api.core.services.access import Scope
from on_api.core.services.container import Services
from on_api.core.services.files import FileFacts
from on_api.core.services.uploads import IncomingFile
from on_api.core.settings import Settings
from on_api.core.upload_forms import PASSPHRASE_HEADER, PLAIN_OPTIONS, UploadOptions

logger = logging.getLogger(__name__)

Headers = Sequence[tuple[bytes, bytes]]
Answer = Callable[[int, Headers, bytes], None]
"""Sends status, headers and body; does nothing when the client is gone."""

_JSON = (b"content-type", b"application/json")
_UNUSUAL = frozenset({b"idempotency-key", b"content-range", PASSPHRASE_HEADER.lower().encode()})


class QuickUploads:
    """Takes uploads to `paths`. On the event loop only."""

    def __init__(
        self,
        services: Services,
        paths: Collection[str],
        errors: ErrorHandlers,
        places: Places,
    ) -> None:
        settings = services.settings
        self._services = services
        self._paths = {path.encode(): path for path in paths}
        self._errors = errors
        self._places = places
        self._record = RequestRecord(services.metrics)
        self._base_url = settings.base_url
        self._default_visibility = settings.files.default_visibility
        self._unusual = _UNUSUAL | _read_by_others(settings)

    def __call__(
        self, url: bytes, headers: Headers, body: bytes, client: str, answer: Answer
    ) -> bool:
        """Take a PUT, all of it, if nothing is unusual about it; `answer` is called when it is
        stored. False: nothing was done."""
        path, _, query = url.partition(b"?")
        given: dict[bytes, bytes] = dict(reversed(headers))
        if path not in self._paths or not self._unusual.isdisjoint(given):
            return False
        key = bearer_key(given.get(b"authorization", b"").decode("latin-1"))
        principal = None if key is None else self._services.authenticator.recall(key)
        if principal is None or not principal.allows(Scope.FILES_WRITE):
            return False
        file = self._describe(query, given.get(b"content-type"))
        if file is None or not self._places.take():
            return False
        upload = _Upload(self._paths[path], client, answer, new_request_id(), time.perf_counter())
        if not self._services.uploads.offer(
            principal, file, body, lambda outcome: self._end(upload, outcome)
        ):
            self._places.give()
            return False
        return True

    def _describe(self, query: bytes, media_type: bytes | None) -> IncomingFile | None:
        options = UploadOptions(self._default_visibility)
        given = read_query(query, PLAIN_OPTIONS)
        if given is None or b"#" in query:
            return None
        try:
            for option, value in given.items():
                options.set(option, value)
            if (options.visibility or self._default_visibility) == PRIVATE:
                return None
            text = None if media_type is None else media_type.decode("latin-1")
            return options.describe_file(_nothing(), None, text)
        except BadRequest:
            return None

    def _end(self, upload: _Upload, outcome: Sequence[FileFacts] | BaseException) -> None:
        self._places.give()
        token = request_id.set(upload.identity)
        try:
            if isinstance(outcome, asyncio.CancelledError):  # the process ends
                self._tell(upload, 0, "client gone", 0)
                return
            status, headers, body = self._answer_to(upload.path, outcome)
            told = [*headers, (REQUEST_ID, upload.identity.encode()), NOSNIFF]
            upload.answer(status, told, body)
            self._tell(upload, status, "done", len(body))
        finally:
            request_id.reset(token)

    def _tell(self, upload: _Upload, status: int, outcome: str, sent: int) -> None:
        seconds = time.perf_counter() - upload.began
        path, client = upload.path, upload.client
        self._record.tell("PUT", path, path, client, status, outcome, sent, seconds)

    def _answer_to(
        self, path: str, outcome: Sequence[FileFacts] | BaseException
    ) -> tuple[int, Headers, bytes]:
        if not isinstance(outcome, BaseException):
            [file] = outcome
            body = File.of(file, self._base_url).model_dump_json().encode()
            return 201, [(b"content-length", b"%d" % len(body)), _JSON], body
        if isinstance(outcome, OnApiError):
            answer = self._errors.answer(path, outcome)
        else:
            logger.error("a request failed", exc_info=outcome)
            answer = self._errors.internal_error(path)
        return answer.status_code, answer.raw_headers, bytes(answer.body)


class _Upload(NamedTuple):
    """One that was taken, until it is answered."""

    path: str
    client: str
    answer: Answer
    identity: str
    began: float


def _read_by_others(settings: Settings) -> frozenset[bytes]:
    """Headers that middleware reads."""
    names = set()
    if settings.cors.origins:
        names.add(b"origin")
    if settings.trusted_proxies:
        names |= {b"x-forwarded-for", b"x-forwarded-proto"}
    return frozenset(names)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
