"""How parameters are cut and ranks talk. Empty until there is more than one."""
