"""From a trained adapter to what is served: int8, folders, comparisons."""
