"""Measures of finished films: what the pixels show, against what the prompt asked for."""
