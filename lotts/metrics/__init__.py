"""Numbers over sets of pictures: how far from real ones, how damaged, how changed, how well judged."""

from lotts.metrics.extractors import FeatureExtractor, InceptionFeatures, ShapesFeatures
from lotts.metrics.fid import FrechetResult, fid, frechet_distance, moments_of
from lotts.metrics.moments import Moments, Origin

__all__ = [
    "FeatureExtractor",
    "FrechetResult",
    "InceptionFeatures",
    "Moments",
    "Origin",
    "ShapesFeatures",
    "fid",
    "frechet_distance",
    "moments_of",
]
