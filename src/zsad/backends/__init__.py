"""Backends that run a model: PyTorch, ONNX Runtime and OpenVINO. All take and return NumPy arrays."""
