"""Synthetic people: a renderer of the morphable head, and captions for its pictures."""
