"""Piper: stages with their own data- and tensor-parallel degrees."""
