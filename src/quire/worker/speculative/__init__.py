"""Drafters and verification. Empty until the first one."""
