"""Traffic: counted before it is sent, limited by budgets, summed and reported."""
