"""Small loops compiled by numba: one training step, and the k largest of each row."""
