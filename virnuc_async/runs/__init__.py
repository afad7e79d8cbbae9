"""The output directory of a run: its lock, its store and what it resumes."""
