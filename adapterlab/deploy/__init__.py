"""From a run to what is served: made, compared with the original, reported."""
