"""The check of a run against the plain model: losses, gradients and parameters."""
