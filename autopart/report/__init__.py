"""Tables and timelines for the terminal, and the documents that `--json` prints.

The functions take plain values and return rich renderables or structs. They read no file and decide
nothing.
"""
