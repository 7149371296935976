"""Seconds and bytes for stages. No other room computes them.

The formulas take numbers, numpy matrices with an entry for each pair of cuts, or affine expressions in an integer
program. So a solver and the evaluation of its plan cannot disagree.
"""
