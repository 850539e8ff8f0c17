"""Options of uploads, from the query or from form fields: validated, and joined to the bytes.

Between the multipart reader, which knows no meaning, and the upload service, which knows no HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from on_api.core.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from on_api.core.media_types import BINARY, tidied
from on_api.core.models.file import PRIVATE
from on_api.core.schemas.common import Meta
from on_api.core.schemas.files import FileName, Recipients, Visibility
from on_api.core.services.content.reservations import Announced
from on_api.core.services.files.private_files import Audience
from on_api.core.services.uploads.uploads import IncomingFile
from on_api.core.streams.blocks import Bytes
from on_api.core.web.error_texts import describe
from on_api.core.web.json_text import RepeatedName, read_json
from on_api.core.web.multipart import MultipartReader, Part

FILE_FIELD = "file"
FORM_OVERHEAD_BYTES = 64 * 1024
"""Bytes that a form's boundaries, headers and fields are assumed to need; only an early refusal
depends on it."""

# Default types of curl's `--data-binary` and of other clients: they say nothing about the file.
_MEANINGLESS = frozenset({"application/x-www-form-urlencoded", BINARY})

_OPTIONS: dict[str, TypeAdapter[Any]] = {
    "name": TypeAdapter(FileName),
    "meta": TypeAdapter(Meta),
    "visibility": TypeAdapter(Visibility),
    "recipients": TypeAdapter(Recipients),
    "owner_access": TypeAdapter(bool),
}

PASSPHRASE_HEADER = "On-Api-Passphrase"  # noqa: S105 (a header's name)
LEAST_PASSPHRASE, MOST_PASSPHRASE = 8, 256
"""Characters of a passphrase: minimum for a new one, maximum for any."""


@dataclass
class UploadOptions:
    """Options of an upload, from query or form fields; the passphrase from a header only."""

    default_visibility: str
    passphrase: str | None = field(default=None, repr=False)
    name: str | None = None
    meta: dict[str, Any] | None = None
    visibility: str | None = None
    recipients: list[str] | None = None
    owner_access: bool | None = None

    def set(self, field: str, value: str) -> None:
        """Set one option from text; recipients add up. Raises `BadRequest` for an unknown, invalid
        or contradictory one."""
        if field == "recipients" and self.recipients is not None:
            value, self.recipients = ",".join([*self.recipients, value]), None
        checked = check_option(field, value)
        before = getattr(self, field)
        if before is not None and before != checked:
            raise BadRequest(f"{field}: given more than once, with different values.")
        setattr(self, field, checked)

    def set_from_form(self, field: str, value: str) -> None:
        """Set one option from a form, as `set` does; an empty field counts as absent."""
        if value or field not in _OPTIONS:
            self.set(field, value)

    def describe_file(
        self, body: AsyncIterator[Bytes], filename: str | None, media_type: str | None
    ) -> IncomingFile:
        """Return an incoming file with these options. Raises `BadRequest` for an invalid name or
        media type."""
        name = self.name or _check_name(filename)
        return IncomingFile(
            name=name,
            media_type=_check_media_type(media_type) if media_type else None,
            meta=self.meta or {},
            body=body,
            audience=self._audience(),
        )

    def _audience(self) -> Audience | None:
        if (self.visibility or self.default_visibility) == PRIVATE:
            owner_access = self.owner_access
            if self.passphrase is not None and owner_access is not None:
                raise BadRequest("owner_access: can't be combined with a passphrase.")
            return Audience(
                recipients=tuple(dict.fromkeys(self.recipients or ())),
                owner_access=owner_access is not False,
                passphrase=self.passphrase,
            )
        for option in ("recipients", "owner_access", "passphrase"):
            if getattr(self, option) is not None:
                raise BadRequest(
                    f"{option}: only allowed for private files; set visibility=private as well."
                )
        return None


def raw_media_type(headers: Mapping[str, str]) -> str | None:
    """Return the Content-Type of a body that is one file. Raises `UnsupportedMediaType` for a form,
    whose boundaries would be stored with it."""
    media_type = headers.get("content-type")
    if media_type is not None and media_type.strip().lower().startswith("multipart/"):
        raise UnsupportedMediaType(
            "The body is a form. Send only the bytes of the file, as `curl -T FILE` does, or"
            " send the form with POST /files."
        )
    return media_type


def check_option(field: str, value: str) -> Any:
    """Return the value of an option given as text. Raises `BadRequest` for an unknown or invalid
    one."""
    if field == "passphrase":
        raise BadRequest(f"passphrase: must be sent in the header {PASSPHRASE_HEADER}.")
    adapter = _OPTIONS.get(field)
    if adapter is None:
        raise BadRequest(f"Unknown form field; the known fields are: {', '.join(_OPTIONS)}.")
    try:
        return adapter.validate_python(_READ.get(field, str)(value))
    except ValidationError as error:
        raise BadRequest(f"{field}: {describe(error.errors())}") from None


def check_passphrase(header: str | None, *, new: bool) -> str | None:
    """Return the passphrase of a header: UTF-8, although headers were decoded as Latin-1.

    Raises `BadRequest` for one that can't be valid, or that is too short for a `new` one.
    """
    if header is None:
        return None
    try:
        passphrase = header.encode("latin-1").decode()
    except UnicodeError:
        raise BadRequest(f"{PASSPHRASE_HEADER}: must be UTF-8.") from None
    least = LEAST_PASSPHRASE if new else 1
    if not least <= len(passphrase) <= MOST_PASSPHRASE or not passphrase.isprintable():
        raise BadRequest(
            f"{PASSPHRASE_HEADER}: must have {LEAST_PASSPHRASE} to {MOST_PASSPHRASE} printable"
            " characters."
        )
    return passphrase


def announced_by_body(
    headers: Mapping[str, str], max_size: int, audience: Audience | None
) -> Announced:
    """Return the size on the node that a raw body's headers announce. Raises `PayloadTooLarge` when
    it exceeds `max_size`."""
    length = _content_length(headers)
    if length is None:
        return Announced()
    if length > max_size:
        raise PayloadTooLarge(f"The file exceeds {max_size} bytes.")
    announced = Announced(least=length, most=length)
    return announced if audience is None else audience.announce(announced)


def announced_by_form(headers: Mapping[str, str]) -> Announced:
    """Return the size of a form's files that its headers announce: between its own length less the
    form's overhead, and its length plus the overhead of private files."""
    length = _content_length(headers)
    if length is None:
        return Announced()
    most = Audience().announce(Announced(length, length)).most
    return Announced(max(0, length - FORM_OVERHEAD_BYTES), most)


async def incoming_files(
    reader: MultipartReader, options: UploadOptions
) -> AsyncIterator[IncomingFile]:
    """Yield the files of a form, one after the other as they come.

    `name` and `meta` may also follow the file; `visibility` must come first, since the bytes are
    already on their way to the node by then.
    """
    files: list[IncomingFile] = []
    async for part in reader.parts():
        if part.name == FILE_FIELD:
            if part.filename == "" and await _is_empty(part):
                continue  # a browser's file input without a chosen file
            if part.filename is None and options.name is None:
                raise BadRequest(
                    "The form part `file` has no filename. With curl, use -F file=@PATH, or"
                    " send the field `name` before the file."
                )
            files.append(
                options.describe_file(part.chunks(), _last_step(part.filename), part.media_type)
            )
            if len(files) > 1 and options.name is not None:
                raise BadRequest("name: only allowed when uploading a single file.")
            yield files[-1]
        elif part.filename is not None:
            raise BadRequest(f"Send files in form parts named `{FILE_FIELD}`.")
        else:
            if files and part.name not in {"name", "meta"}:
                raise BadRequest(
                    "All fields except name and meta must precede the file, because its bytes"
                    " are already being sent to the node."
                )
            options.set_from_form(part.name, await part.text())
            for file in files:
                file.name = options.name or file.name
                file.meta = options.meta or file.meta


async def _is_empty(part: Part) -> bool:
    async for chunk in part.chunks():
        if chunk:
            raise BadRequest("A file was sent without a name.")
    return True


def _check_name(name: str | None) -> str:
    if not name:
        raise BadRequest(
            "The file has no name: send a filename with the form part, or use `?name=NAME`."
        )
    try:
        return _OPTIONS["name"].validate_python(name)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise BadRequest(f"filename: {describe(error.errors())}") from None


def _check_media_type(text: str) -> str | None:
    """Return a file's Content-Type without empty parameters (`text/plain;`); None if it says
    nothing about the file."""
    media_type = tidied(text)
    if media_type is None:
        raise BadRequest("The file's Content-Type is not a valid media type.")
    essence = media_type.partition(";")[0].rstrip().lower()
    return None if essence in _MEANINGLESS else media_type


def _last_step(filename: str | None) -> str | None:
    """Return the last step of a path: the rest is the sender's own business (RFC 7578, section
    4.2)."""
    if filename is None:
        return None
    if filename[1:3] == ":\\" or filename[:2] == "\\\\":  # a path of Windows
        filename = filename.rpartition("\\")[2]
    return filename.rpartition("/")[2]


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _json_object(text: str) -> object:
    try:
        return read_json(text)
    except RepeatedName as error:
        raise BadRequest(f"meta: {error}.") from None
    except (ValueError, RecursionError):
        raise BadRequest("meta: not valid JSON.") from None


def _by_commas(text: str) -> object:
    return [part.strip() for part in text.split(",") if part.strip()]


# Parsers of options that are not plain text.
_READ: dict[str, Callable[[str], object]] = {"meta": _json_object, "recipients": _by_commas}
