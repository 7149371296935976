"""The files that `export --to torch` writes.

They import each other by their own names, and never autopart.
"""
