"""What a person reads: tables and timelines for the terminal, and summaries for `--json`.

Plain values in, rich renderables or structs out; nothing here reads a file or decides anything.
"""
