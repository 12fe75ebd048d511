"""Small loops compiled by numba: one training step, and the k largest values of each row."""
