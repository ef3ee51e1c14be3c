"""Triton kernels, each with its plain-torch twin. Empty until the first one."""
