"""Making a film: denoise one group, plan and populate a segment, hand over, chain.

Knows networks, layouts and noise; knows no files, no terminal and no processes.
"""
