"""Training: the loop, what it changes, and what it is built of."""
