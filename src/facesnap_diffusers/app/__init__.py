"""The web app: `facesnap app`."""
