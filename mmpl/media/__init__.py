"""Between pixels and files: mp4, stills, and writing any file so that it is whole or not there.

Knows nothing of models or films. Pixels are uint8 RGB in numpy: FHWC for clips, HWC for stills.
Only `pixels.to_uint8` takes a torch tensor.
"""
