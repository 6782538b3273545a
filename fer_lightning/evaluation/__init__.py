"""Scores, confidence intervals, calibration and robustness of a network, and the reports on them."""
