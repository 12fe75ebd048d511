"""Small loops: one training step, and the k largest of each row. numba compiles them for CPUs, Triton for GPUs."""
