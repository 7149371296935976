"""Named schedules, one file for each. Every file opens with a picture of its schedule."""
