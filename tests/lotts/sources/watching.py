"""What a source finds in a picture, without a pipeline."""

import numpy as np
import torch

from lotts.sources import map_source


def brightness(images, prompts):
    return [float(image.mean()) for image in images]


class Drawn:
    """Stands for a backbone whose latents are pictures."""

    device = torch.device("cpu")

    def decode(self, latents):
        return latents.numpy()


def maps_of(source, image, prompt, seeds=(1,)):
    latents = torch.from_numpy(np.stack([image] * len(seeds)).astype(np.float32) / 255)
    with map_source(source, brightness).watch(Drawn(), prompt, list(seeds), (16, 16), 4, None) as watch:
        return watch.maps(lambda step: latents)["P"]
