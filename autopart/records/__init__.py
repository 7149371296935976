"""Frozen values and their files: inputs, decisions and measurements."""
