"""Readback: the installed framework reads an export, and the result is compared with the plan."""
