"""What a photo says about a face: finding it, its landmarks and embedding, crops, pose and expression, drawing."""
