"""Training, evaluation and calibration of classifiers on labelled sequences."""
