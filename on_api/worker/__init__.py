"""Background work, which no request waits for. Each module is one kind of job: it claims work, does
a bounded piece, commits, repeats."""
