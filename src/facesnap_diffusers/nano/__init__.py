"""The nano model: a small base of synthetic people with its adapter, which comes with the package."""
