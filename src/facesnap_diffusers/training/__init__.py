"""Training of FaceSnap adapters: `facesnap train`, or `accelerate launch -m facesnap_diffusers.training`."""
