"""Other planners: their profile files, their charges for a stage, and their objectives."""
