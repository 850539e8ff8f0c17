"""Content on the node and its charges: contents and references to them, bundles, leases,
reservations, the reconciliation of pins, maintenance locks."""
