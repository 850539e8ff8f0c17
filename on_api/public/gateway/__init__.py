"""The public gateway at `/ipfs`: what it is asked, what it answers, what nginx sends for it."""
