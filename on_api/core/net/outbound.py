"""HTTP calls to other services: bounded in time and size, retried, and made to exactly the address
that was checked (`checked_connections.py`).

Uses no proxy of the environment, keeps no cookies, follows redirects itself, decompresses nothing.
Knows nothing of IPFS or of the requests' meaning.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpcore
import httpx

from on_api.core.backoff import Backoff
from on_api.core.errors import AddressRefused
from on_api.core.net.addresses import LookUp, is_public, look_up
from on_api.core.net.checked_connections import CheckedTransport
from on_api.core.net.errors import (
    SourceError,
    SourceMalformed,
    SourceMissing,
    SourceUnauthorized,
    SourceUnavailable,
)
from on_api.core.setting_groups import ImportsSettings

USER_AGENT = "on-api"
MAX_URL_LENGTH = 2048
MAX_REDIRECTS = 3
MAX_JSON_DEPTH = 32
FIRST_PAUSE_SECONDS = 0.5
"""Seconds before the first retry, doubled for each further one, less up to a half at random."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)
"""Pattern of strings, terminated or not, and brackets: runs in one pass on any input."""

T = TypeVar("T")


def check_url(text: str, *, allow_private: bool) -> httpx.URL:
    """Check what can be checked of a service's URL without a lookup. Returns it without a trailing
    slash.

    Raises `AddressRefused`: only `https://`, no user, password, query or fragment, no address
    outside the public internet; with `allow_private` also `http://` and any address.
    """
    try:
        url = httpx.URL(text.rstrip("/") if len(text) <= MAX_URL_LENGTH else "")
    except (httpx.InvalidURL, UnicodeError):
        raise AddressRefused("This is not a valid URL.") from None
    if url.query or url.fragment:
        raise AddressRefused("The URL must not have a query or a fragment.")
    _check(url, allow_private=allow_private)
    return url


@dataclass(frozen=True, slots=True)
class OutboundResponse:
    """The head of a successful answer, and its body still to come."""

    status: int
    headers: Mapping[str, str]
    """Headers by lower-case names."""
    chunks: AsyncIterator[bytes]
    """The body as it arrives. Raises a `SourceError` when it breaks off or stalls."""


class Outbound:
    """Calls under one set of limits. Bound to the event loop of its first call.

    Every call raises `AddressRefused`; `SourceUnauthorized` for 401 and 403; `SourceMissing` for
    404, 410 and 451; `SourceUnavailable` for temporary failures, after all retries;
    `SourceMalformed` for answers that can't be understood; `SourceError` for any other status. No
    error or log shows more of a URL than its host.
    """

    def __init__(
        self,
        limits: ImportsSettings,
        *,
        look_up: LookUp = look_up,
        first_pause: float = FIRST_PAUSE_SECONDS,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.limits = limits
        self._look_up = look_up
        self._first_pause = first_pause
        self._backend = backend
        self._transport: CheckedTransport | None = None

    async def ask(
        self,
        url: httpx.URL,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Any:
        """Return the JSON of one answer, of at most `max_answer` bytes and `MAX_JSON_DEPTH` levels.

        The call is retried after a temporary failure, so it must do no harm if it is made twice.
        """
        content, kind = _content(form, body)
        headers = {"accept": "application/json", **kind}
        call = _Call(method, _with_query(url, query), headers, authorization, content)
        return await self._patiently(lambda: self._ask_once(call))

    @asynccontextmanager
    async def open(
        self,
        url: httpx.URL,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        authorization: str | None = None,
        accept: str = "*/*",
    ) -> AsyncIterator[OutboundResponse]:
        """Open an answer whose body streams. Only failures before its body are retried."""
        call = _Call(method, _with_query(url, query), {"accept": accept}, authorization, b"")
        response = await self._patiently(lambda: self._open_once(call))
        try:
            yield OutboundResponse(
                response.status_code, response.headers, _body(call.url, response)
            )
        finally:
            await response.aclose()

    async def pause(self, tries: int) -> None:
        """Wait before another attempt, after `tries` retries."""
        backoff = Backoff(self._first_pause, self.limits.longest_pause)
        await asyncio.sleep(backoff.jittered(tries + 1))

    async def close(self) -> None:
        """Close every connection."""
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                return await attempt()
            except _PassingError as error:
                wanted = error.retry_after
                if tries >= self.limits.retries or (wanted or 0) > self.limits.longest_pause:
                    later = 5 if wanted is None else round(wanted)
                    raise SourceUnavailable(str(error), retry_after=later) from error.__cause__
                if wanted is None:
                    await self.pause(tries)
                else:
                    await asyncio.sleep(wanted)
                tries += 1

    async def _ask_once(self, call: _Call) -> Any:
        try:
            async with asyncio.timeout(self.limits.total_timeout):
                response = await self._open_once(call)
                try:
                    body = bytearray()
                    async for chunk in _body(call.url, response):
                        body += chunk
                        if len(body) > self.limits.max_answer:
                            raise SourceMalformed(f"The response of {call.url.host} is too large.")
                except SourceUnavailable as error:
                    raise _PassingError(error.details) from error
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise _PassingError(f"{call.url.host} did not respond in time.") from error
        # In a thread: parsing a body of many megabytes takes a second.
        return await asyncio.to_thread(_json, call.url.host, bytes(body))

    async def _open_once(self, call: _Call) -> httpx.Response:
        """Return the first answer that is not a redirect, if its status is 200."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(call)
            try:
                if response.status_code in _REDIRECTS:
                    call = _redirected(call, response)
                    _check(call.url, allow_private=self.limits.allow_private)
                elif response.status_code == 200:
                    if response.headers.get("content-encoding", "identity") != "identity":
                        raise SourceMalformed(
                            f"{call.url.host} sent a compressed response although none was"
                            " accepted."
                        )
                    return response
                else:
                    _refuse(call.url.host, response)
            except BaseException:
                await response.aclose()
                raise
            await response.aclose()
        raise SourceMalformed(f"{call.url.host} redirects too many times.")

    async def _send(self, call: _Call) -> httpx.Response:
        if self._transport is None:
            backend = self._backend or httpcore.AnyIOBackend()
            self._transport = CheckedTransport(self.limits, self._look_up, backend)
        limits = self.limits
        headers = {"user-agent": USER_AGENT, "accept-encoding": "identity", **call.headers}
        if call.authorization is not None:
            headers["authorization"] = call.authorization
        timeout = httpx.Timeout(limits.read_timeout, connect=limits.connect_timeout)
        request = httpx.Request(
            call.method,
            call.url,
            headers=headers,
            content=call.content,
            extensions={"timeout": timeout.as_dict()},
        )
        try:
            async with asyncio.timeout(limits.total_timeout):
                return await self._transport.handle_async_request(request)
        except (httpx.TransportError, TimeoutError) as error:
            raise _PassingError(_trouble(call.url.host, error)) from error


class _PassingError(Exception):
    """A temporary failure; `retry_after` in seconds if the service has named it."""

    def __init__(self, details: str, retry_after: float | None = None) -> None:
        super().__init__(details)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    authorization: str | None
    content: bytes


def _check(url: httpx.URL, *, allow_private: bool) -> None:
    if url.scheme not in ({"http", "https"} if allow_private else {"https"}) or not url.host:
        raise AddressRefused
    if url.userinfo or len(str(url)) > MAX_URL_LENGTH or not 0 < (url.port or 1) < 65536:
        raise AddressRefused(
            "The URL must not contain a username or password, must not be too long, and must"
            " have a valid port."
        )
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:
        return  # a name, or what resolves like one: judged when the connection is made
    if not (allow_private or is_public(address)):
        raise AddressRefused(f"{url.host} is not a public internet address.")


def _with_query(url: httpx.URL, query: Mapping[str, str] | None) -> httpx.URL:
    return url.copy_merge_params(query) if query else url


def _content(form: Mapping[str, str] | None, body: object) -> tuple[bytes, Mapping[str, str]]:
    if form is not None:
        encoded = str(httpx.QueryParams(dict(form))).encode()
        return encoded, {"content-type": "application/x-www-form-urlencoded"}
    if body is not None:
        return json.dumps(body).encode(), {"content-type": "application/json"}
    return b"", {}


def _redirected(call: _Call, response: httpx.Response) -> _Call:
    """Return the call to which a redirect leads. Credentials are sent to their own origin only."""
    if call.method != "GET":
        raise SourceMalformed(f"{call.url.host} redirects a request that can't be redirected.")
    try:
        url = call.url.join(response.headers["location"]).copy_with(fragment=None)
    except (KeyError, httpx.InvalidURL, UnicodeError) as error:
        raise SourceMalformed(f"{call.url.host} sent a redirect without a valid target.") from error
    same = _origin(url) == _origin(call.url)
    return _Call("GET", url, call.headers, call.authorization if same else None, b"")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _refuse(host: str, response: httpx.Response) -> None:
    """Raise the error for a status that isn't 200."""
    status = response.status_code
    if status in _PASSING:
        pause = _retry_after(response.headers.get("retry-after"))
        what = (
            "is limiting the request rate" if status == 429 else f"responded with status {status}"
        )
        raise _PassingError(f"{host} {what}.", pause)
    if status in {401, 403}:
        raise SourceUnauthorized
    if status in {404, 410, 451}:
        raise SourceMissing
    raise SourceError(f"{host} responded with status {status}.")


def _retry_after(value: str | None) -> float | None:
    """Return a `Retry-After` in seconds from now, given as a number or a date (RFC 9110, 10.2.3);
    None for anything else."""
    if value is None or len(value) > 64:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


async def _body(url: httpx.URL, response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    except (httpx.TransportError, httpx.StreamError) as error:
        raise SourceUnavailable(_trouble(url.host, error)) from error


def _trouble(host: str, error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"The TLS certificate of {host} is not valid."
        return f"{host} can't be reached."
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"{host} did not respond in time."
    return f"{host} closed the connection unexpectedly."


def _json(host: str, body: bytes) -> Any:
    depth = 0
    for token in _TOKENS.finditer(body):
        if token[0] in b"[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise SourceMalformed(f"{host} sent JSON that is nested too deeply.")
        elif token[0] in b"]}":
            depth -= 1
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceMalformed(f"{host} sent a response that is not valid JSON.") from error
