"""The engine for programs: one load of the model, many callers, no directory and no database."""
