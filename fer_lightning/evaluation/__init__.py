"""How good a network is: scores, intervals, calibration, robustness, and the report on them."""
