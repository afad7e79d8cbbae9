"""Verdicts from scores, and the tables and reports that are made of them."""
