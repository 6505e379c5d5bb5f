"""Measures of finished films: what the pixels show, against what the prompt asked for. And the ways
of making films that are compared: `methods`."""
