"""What lies on the node and who it is charged to: contents and references to them, bundles, leases,
reservations, the reconciliation of pins, maintenance locks."""
