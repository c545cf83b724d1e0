"""Numerics while training: what quantisation does to each operand, measured now and then inside compiled graphs."""
