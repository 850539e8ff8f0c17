"""The page that a browser gets for a share's link: plain HTML without a script. Knows nothing of
shares, only what the page shows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from starlette.responses import HTMLResponse

_STYLE = """
body { margin: 0; font: 1rem/1.5 system-ui, sans-serif; color-scheme: light dark }
main { max-width: 30rem; margin: 15vh auto 0; padding: 0 1rem }
h1 { font-size: 1.25rem; overflow-wrap: anywhere }
label, input, button { display: block; box-sizing: border-box; width: 100%; font: inherit }
input, button { margin: .25rem 0 1rem; padding: .5rem }
[role=alert] { font-weight: bold }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}

# These would show a name reversed, as if it were another kind of file.
_TURNS_TEXT = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Offer:
    """A file to download, with what the page must say and ask."""

    name: str
    size: int
    media_type: str
    asks_password: bool
    asks_passphrase: bool


def offer_page(
    offer: Offer, *, error: str | None = None, status: int = 200, headers: Mapping[str, str]
) -> HTMLResponse:
    """Return the page with the download button; `error` says why the last try failed."""
    fields = ""
    if offer.asks_password:
        fields += _field("password", "Password for this link")
    if offer.asks_passphrase:
        fields += _field("passphrase", "Passphrase of this file")
    alert = "" if error is None else f'<p role="alert">{escape(error)}</p>'
    # Without an action: it posts to the page's own address, so the token is not in the page.
    form = f'<form method="post">{fields}<button>Download</button></form>'
    name = _shown(offer.name)
    about = f"<p>{_size(offer.size)} · {_shown(offer.media_type)}</p>"
    return _page(name, f"<h1><bdi>{name}</bdi></h1>{about}{alert}{form}", status, headers)


def message_page(message: str, *, status: int, headers: Mapping[str, str]) -> HTMLResponse:
    """Return a page with a message and nothing to download."""
    return _page("on-api", f'<p role="alert">{escape(message)}</p>', status, headers)


def _page(title: str, body: str, status: int, headers: Mapping[str, str]) -> HTMLResponse:
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    return HTMLResponse(html, status, headers={**headers, **_HEADERS})


def _field(name: str, label: str) -> str:
    return (
        f'<label for="{name}">{label}</label><input type="password" id="{name}" name="{name}" '
        'autocomplete="off" required>'
    )


def _shown(text: str) -> str:
    return escape(_TURNS_TEXT.sub("\N{REPLACEMENT CHARACTER}", text))


def _size(size: int) -> str:
    """Return a size in bytes for a person: three digits, in powers of 1000."""
    number, units = float(size), iter(("bytes", "kB", "MB", "GB", "TB", "PB", "EB"))
    unit = next(units)
    while number >= 999.5:
        number, unit = number / 1000, next(units)
    return f"{number:.3g} {unit}"
