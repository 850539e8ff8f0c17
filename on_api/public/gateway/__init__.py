"""The public gateway at `/ipfs`: its requests, its answers, and those that nginx sends for it."""
