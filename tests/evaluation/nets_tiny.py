"""The digits, and a small net that learns to tell them within the test."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy

from hf_mm.evaluation.feature_nets import FeatureNet


class SmallCNN(nn.Module):
    """Pictures (B, 1, 8, 8) to features (B, 32) and logits (B, 10)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, pixels):
        features = self.body(pixels)
        return features, self.head(features)


def digits():
    """Training pictures and labels, test pictures and labels; pictures (N, 1, 8, 8) in [-1, 1]."""
    found = load_digits()
    pictures = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:1700]
    return pictures[train], labels[train], pictures[test], labels[test]


def digits_net(pictures, labels, steps=120):
    """A classifier in about a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cnn = SmallCNN()
        optimizer = torch.optim.Adam(cnn.parameters(), 3e-3)
        for _ in range(steps):
            rows = torch.randint(len(labels), (128,))
            optimizer.zero_grad()
            cross_entropy(cnn(pictures[rows])[1], labels[rows]).backward()
            optimizer.step()
    return FeatureNet("digits-cnn", cnn, channels=1)


def blurred(pictures, size=5):
    return avg_pool2d(pictures, size, stride=1, padding=size // 2, count_include_pad=False)


def noisy(pictures, strength=0.2):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(3))
    return pictures + strength * noise


def collapsed(pictures, labels):
    """The picture nearest to the mean of its class, again and again."""
    chosen = torch.empty_like(pictures)
    for label in labels.unique():
        rows = labels == label
        mean = pictures[rows].mean(dim=0)
        nearest = (pictures[rows] - mean).flatten(1).norm(dim=1).argmin()
        chosen[rows] = pictures[rows][nearest]
    return chosen
