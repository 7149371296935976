"""Layouts in other frameworks' words, read as stages of a profile's layers. It imports no framework."""
