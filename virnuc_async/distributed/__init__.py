"""Runs of many machines: a plan, shards, and what is merged of them."""
