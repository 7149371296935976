"""Shares of kernels, fitted to measured steps or to a measured profile."""
