"""The worker knows tensors: it follows the engine's plans on one device."""
