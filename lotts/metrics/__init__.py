"""Numbers over sets of pictures: how far from real ones, how damaged, how changed, how well judged."""

from lotts.metrics.artifacts import Change, Damage, Difference, change, damage, mean_change, shapes_damage
from lotts.metrics.clip import SetScore, clip_score
from lotts.metrics.extractors import FeatureExtractor, InceptionFeatures, ShapesFeatures
from lotts.metrics.fid import FrechetResult, fid, frechet_distance, moments_of
from lotts.metrics.moments import Moments, Origin
from lotts.metrics.pictures import Picture

__all__ = [
    "Change",
    "Damage",
    "Difference",
    "FeatureExtractor",
    "FrechetResult",
    "InceptionFeatures",
    "Moments",
    "Origin",
    "Picture",
    "SetScore",
    "ShapesFeatures",
    "change",
    "clip_score",
    "damage",
    "fid",
    "frechet_distance",
    "mean_change",
    "moments_of",
    "shapes_damage",
]
