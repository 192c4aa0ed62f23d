"""The six pipelines, and what a call of theirs carries with it."""
