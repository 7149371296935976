"""A training run: processes, ranks, the status board and each rank's results."""
