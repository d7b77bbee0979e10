"""A bundle to frames, without PyTorch."""
