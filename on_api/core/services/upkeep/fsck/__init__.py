"""`fsck`: checks that database and node agree, both ways, and repairs differences.

`ledger.py` checks the database against itself, `node_pins.py` lists what the node has pinned,
`checks.py` compares the two and walks the DAGs, `runner.py` runs them in order.
"""
