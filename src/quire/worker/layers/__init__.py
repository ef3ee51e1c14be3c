"""What models are built from: linear, embedding, norm, rope, attention, and blocks that families share."""
