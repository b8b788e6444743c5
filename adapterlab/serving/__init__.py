"""What is served: models in int8, and the folder that they are kept in."""
