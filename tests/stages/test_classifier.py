"""The judge of generated images: it tells users apart that differ, and is itself a function of the seed."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny_images
from train.data.dataset import UserImages
from train.stages.classifier import predict_users, train_classifier

CPU = torch.device("cpu")


def two_users(count: int, side: int = 16) -> UserImages:
    """Noise, in which one user's images are red and the other's are blue."""
    data = tiny_images(count, side, users=2)
    images = data.images // 2
    for user, channel in ((0, 0), (1, 2)):
        images[data.user_index == user, channel] += 100
    return replace(data, images=images)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


def test_users_that_differ_are_told_apart_on_new_images():
    data, training, new = two_users(80), torch.arange(64), torch.arange(64, 80)
    model = train_classifier(data, training, 0, CPU)
    assert torch.equal(predict_users(model, data.images[new], CPU), data.user_index[new])


def test_a_classifier_is_a_function_of_the_seed():
    data, rows = two_users(12), torch.arange(12)
    first = weights(train_classifier(data, rows, 0, CPU))
    torch.manual_seed(99)
    assert torch.equal(weights(train_classifier(data, rows, 0, CPU)), first)
    assert not torch.equal(weights(train_classifier(data, rows, 1, CPU)), first)


def test_images_outside_its_rows_teach_a_classifier_nothing():
    data, rows = two_users(12), torch.arange(8)
    other = replace(data, images=torch.cat([data.images[:8], 255 - data.images[8:]]))
    made = [weights(train_classifier(each, rows, 0, CPU)) for each in (data, other)]
    assert torch.equal(*made)


@pytest.mark.parametrize("count", [1, 33])
def test_a_batch_of_a_single_image_is_left_out(count):
    """It has no statistics of its own; with one image there is no batch at all."""
    model = train_classifier(two_users(count), torch.arange(count), 0, CPU)
    assert weights(model).isfinite().all()


def test_a_prediction_does_not_depend_on_the_other_images():
    data = two_users(70)
    model = train_classifier(data, torch.arange(70), 0, CPU)
    whole = predict_users(model, data.images, CPU)
    assert torch.equal(whole, torch.cat([predict_users(model, image[None], CPU) for image in data.images]))
