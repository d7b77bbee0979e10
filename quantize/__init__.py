"""ONNX graphs to NVFP4."""
