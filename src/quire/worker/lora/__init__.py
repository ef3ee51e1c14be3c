"""Adapters. Empty until the first one."""
