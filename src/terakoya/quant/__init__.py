"""Weights in fewer bits: block codecs and calibration."""
