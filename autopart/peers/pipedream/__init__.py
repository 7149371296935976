"""PipeDream: stages with a replica count each, on networks with one or two levels."""
