"""Export of a model as one graph that needs no PyTorch, compared with the model before it is written."""
