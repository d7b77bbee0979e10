"""SANA-Video: checkpoint to ONNX, NVFP4 and TensorRT-RTX plans, and a runtime without PyTorch."""

__version__ = "0.1.0"
