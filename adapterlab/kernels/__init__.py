"""The hot paths, each beside the plain PyTorch that it equals."""
