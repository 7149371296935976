"""Balancers: stages whose largest sum over layer times is smallest; sends and memory do not count."""
