import torch


# tiny models run faster on one thread than on several
torch.set_num_threads(1)
