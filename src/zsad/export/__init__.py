"""From a model to one graph that needs neither PyTorch nor the method's code, proven against the model."""
