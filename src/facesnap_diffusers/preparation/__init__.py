"""From photos to training shards: `facesnap prepare`."""
