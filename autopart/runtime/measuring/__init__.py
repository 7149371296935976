"""Clocks and meters: seconds for actions and messages, bytes for tensors."""
