"""The head that ImageReward and the aesthetic predictor put on a feature: five linear layers without activations."""

from __future__ import annotations

from torch import nn


class RewardHead(nn.Module):
    """Features [B, width] to scores [B]; keys as published: layers.0, 2, 4, 6 and 7, dropouts between."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features):
        return self.layers(features).squeeze(-1)
