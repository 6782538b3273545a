"""One run: plan, build, announce, fit, test, report."""
