"""`fsck`: whether database and node agree, both ways, and mending what doesn't.

`ledger.py` checks the database against itself, `node_pins.py` lists what the node has pinned,
`checks.py` holds the one against the other and walks the DAGs, `runner.py` puts them in order.
"""
