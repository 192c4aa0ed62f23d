"""The nets of an adapter."""
