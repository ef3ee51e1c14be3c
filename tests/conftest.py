"""Without a GPU Triton's kernels run in its interpreter. That is chosen before triton is imported, which transformers
does too: so here, before any test is."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
