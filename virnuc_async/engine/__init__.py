"""Devices and the replicas of a model that score batches on them."""
