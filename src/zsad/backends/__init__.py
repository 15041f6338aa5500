"""What runs a model: PyTorch, or a runtime for exported graphs. All answer alike, in arrays."""
