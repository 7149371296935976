"""Schedules: which rank runs which action in which order. No seconds and no bytes."""
