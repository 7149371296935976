"""Runs a plan: stages on ranks, their actions and messages."""
