"""`python -m agents.train METHOD --world W --out DIR`: see `agents.training.command`."""

import os
import sys

import torch

from agents.training.command import main

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
