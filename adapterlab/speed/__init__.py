"""Quicker ways of computing the same, each entered for as long as a model trains (docs/speed.md)."""
