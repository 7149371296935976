"""The user's model: found by name, built, and joined with its loss."""
