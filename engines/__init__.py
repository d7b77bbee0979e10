"""ONNX graphs to TensorRT-RTX plans."""
