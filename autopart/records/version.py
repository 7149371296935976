"""The version of autopart, in one place. Plans and probed clusters name it."""

__version__ = "0.1.0"
