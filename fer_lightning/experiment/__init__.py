"""A single run: plan, build, fit, test and report."""
