"""Kernels: Triton functions, each with a plain-torch twin. `select.kernels_for` says which a device gets.

Layers and attention are given the set as an object (`Build.kernels`); nothing here is looked up globally, and
nothing but the Triton files imports triton, so that a machine without it still runs.
"""
