"""What published planners charge a stage, one file for each planner.

Their conventions differ from ours (autopart/cost) and from each other's. A file of this room is
the only place where its planner's numbers are computed, for one stage and, where solvers need it,
for many stages at once.
"""
