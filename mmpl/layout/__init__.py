"""Integers only, no torch: groups and what they see, cache slots, masks, the film's timeline.

`layout` defines the words, `presets` the known layouts, `slots` the cache order (found with
`contiguous`), `mask` the training masks, `timeline` the count of frames.
"""
