"""Work that no request waits for. Each module is one kind of job: it claims, does a bounded
piece, commits, repeats."""
