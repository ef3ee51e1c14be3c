"""Load generator, data sets and reports. A client: it imports nothing of the three houses. Empty so far."""
