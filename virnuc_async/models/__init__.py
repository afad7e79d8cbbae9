"""Bundles of models, their checkpoints, references and calibrations."""
