"""One thread of arithmetic for the whole test run: the tensors are too small to share, and idle
threads of a parallel run only take the processors from each other."""

import torch

torch.set_num_threads(1)
