"""Figures and HTML pages from plain arrays, independent of Lightning."""
