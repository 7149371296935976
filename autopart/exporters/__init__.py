"""Exports: a plan in another framework's words, one file per framework."""
