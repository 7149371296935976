"""Context parallelism: the local graph for one of c ranks, each of which has a part of the positions."""
