"""Compiled kernels: address-level numba functions that a program calls from one loop."""
