"""Stages on a number of replicas each; `network` is the way in, `dual` the method.

dual                         the fewest machines for a bottleneck, and how a bottleneck is tightened
matrices, downsets, order    the same for loads of any kind, over downsets, along one order
two_levels, two_level_probe  pipelines within nodes, and of nodes
pipedream_costs              PipeDream's charges as the numbers that these ask for
network, two_level_network   a plan with its bound: what is tried, and what proves it
regions, network_regions     around the cuts of a plan, where downsets are too many
"""
