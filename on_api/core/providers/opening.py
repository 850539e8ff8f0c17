"""Opens a source by its specification: the one place that knows all kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from on_api.core.net.outbound import Outbound
from on_api.core.providers.base import (
    CAR,
    CIDS,
    KUBO,
    ON_API,
    PINATA,
    PINNING_API,
    Source,
    SourceSpec,
)
from on_api.core.providers.car import CarSource
from on_api.core.providers.cids import CidsSource
from on_api.core.providers.kubo import KuboSource
from on_api.core.providers.on_api import OnApiSource
from on_api.core.providers.pinata import PinataSource
from on_api.core.providers.pinning_api import PinningApiSource

_KINDS: Mapping[str, Callable[[SourceSpec, Outbound], Source]] = {
    CIDS: CidsSource,
    KUBO: KuboSource,
    ON_API: OnApiSource,
    PINATA: PinataSource,
    PINNING_API: PinningApiSource,
}


def open_source(spec: SourceSpec, outbound: Outbound) -> Source:
    """Return the source that `spec` names; makes no call yet. Raises `AddressRefused` or
    `BadRequest`.

    Its calls go through `outbound`, which the caller closes.
    """
    if spec.kind == CAR:
        return CarSource(spec)
    return _KINDS[spec.kind](spec, outbound)
