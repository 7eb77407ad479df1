"""Intervals, paired tests, correction for many comparisons, variance explained, and those of a study's cells."""
