"""Evaluate, compare, report: per-network scores of several methods, and who becomes champion."""
