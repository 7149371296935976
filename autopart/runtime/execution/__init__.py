"""A plan carried out: ranks, their actions and messages, the check against the plain model."""
