"""Whose each place of an image is."""

import torch

from facesnap_diffusers.models.regions import Regions


LEFT, RIGHT = (0.05, 0.2, 0.4, 0.7), (0.6, 0.25, 0.95, 0.75)
MIDDLE = (0.42, 0.05, 0.58, 0.3)


def test_a_face_box_belongs_to_its_person():
    regions = Regions(torch.tensor([LEFT, MIDDLE, RIGHT]), 40, 60)
    for height, width in [(40, 60), (20, 30), (10, 15)]:
        owners = regions.masks(3)[height * width].T.unflatten(1, (height, width))
        for i, (left, top, right, bottom) in enumerate([LEFT, MIDDLE, RIGHT]):
            inside = [
                owners[i, y, x]
                for y in range(height)
                for x in range(width)
                if left < (x + 0.5) / width < right and top < (y + 0.5) / height < bottom
            ]
            assert inside and all(inside)
