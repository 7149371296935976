"""The user's model: found by name, built, and seen as training sees it."""
