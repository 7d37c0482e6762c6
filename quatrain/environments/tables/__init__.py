"""Tabular decision problems as batched tensors, with everything about a policy known exactly."""
