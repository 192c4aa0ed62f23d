"""A FaceSnap adapter: its config, its folder or Hub repo, and its life on a pipeline."""
