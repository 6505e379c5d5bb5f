"""Wan2.1's networks as stateless functions. Knows nothing of films, disks or processes.

Letters in tensor names: B batch, C channel, T latent frame, H W latent rows and columns, F pixel
frame, L query token, S cached token, D width, N head, K head width, J text token, I layer.
"""
