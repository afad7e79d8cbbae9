"""Scores to verdicts to the tables and reports that people read."""
