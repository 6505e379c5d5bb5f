"""Wan-family files <-> parameters. Knows nothing of films.

`names`, `files`, `sizes`, `defaults` and `folder` read names, headers and JSON only and never
import torch; `read` and `bundle` load tensors.
"""
