"""Stages that choose their own data- and tensor-parallel degrees; `stage_widths` is the way in."""
