"""What adapterlab costs beside the frozen backbone and beside its peers: `python -m benchmarks`."""
