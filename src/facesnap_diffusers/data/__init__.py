"""The data of training and evaluation: where photos come from, what is prepared of them, and the shards that hold it."""
