"""Distances in the features of a frozen network."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import ViTConfig, ViTModel

from hf_mm.generators.autoencoder.perceptual import PerceptualLoss
from hf_mm.layers.efficientnet_lite import efficientnet_lite0


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 6, 3, 2, 1))


@pytest.fixture
def pictures():
    torch.manual_seed(1)
    return torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 8, 8) * 2 - 1


def test_the_gradient_goes_to_the_picture_and_not_to_the_network(net, pictures):
    sample, target = pictures[0].requires_grad_(), pictures[1].requires_grad_()
    PerceptualLoss(net)(sample, target).sum().backward()
    assert sample.grad.abs().flatten(1).sum(1).min() > 0
    assert target.grad is None
    assert all(weight.grad is None for weight in net.parameters())


def test_the_gradient_passes_a_network_that_clamps_in_place():
    torch.manual_seed(0)
    loss = PerceptualLoss(efficientnet_lite0(8), ("blocks.0", "blocks.2", "blocks.4"))
    sample, target = (torch.rand(2, 1, 32, 32) * 2 - 1 for _ in range(2))
    direction = torch.randn(2, 1, 32, 32)
    (gradient,) = torch.autograd.grad(loss(sample.requires_grad_(), target).sum(), sample)
    step = 1e-3 * direction / direction.norm()
    with torch.no_grad():
        slope = (loss(sample + step, target) - loss(sample - step, target)).sum() / (2 * step.norm())
    wanted = (gradient * direction).sum() / direction.norm()
    assert_close(slope, wanted, rtol=0.05, atol=1e-3)  # of finite differences in float32, over kinks


def test_a_step_along_the_gradient_brings_the_picture_nearer(net, pictures):
    loss, sample = PerceptualLoss(net), pictures[0].requires_grad_()
    before = loss(sample, pictures[1]).sum()
    (gradient,) = torch.autograd.grad(before, sample)
    assert loss(sample - 0.1 * gradient, pictures[1]).sum() < before


def test_it_is_the_distance_of_unit_features(net, pictures):
    found = PerceptualLoss(net)(*pictures)
    one, other = (nn.functional.normalize(net.eval()(part), dim=1) for part in pictures)
    assert_close(found, ((one - other) ** 2).sum(1).mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert_close(PerceptualLoss(net)(pictures[0], pictures[0]), torch.zeros(2))


def test_named_layers_count_instead_of_the_output(net, pictures):
    both, first, last = (PerceptualLoss(net, layers)(*pictures) for layers in (("1", "3"), ("1",), ()))
    assert_close(both, first + last)
    assert not any(module._forward_hooks for module in net.modules())


def test_dropout_stays_off_in_training(net, pictures):
    loss = PerceptualLoss(net).train()
    assert not net.training
    assert_close(loss(*pictures), loss(*pictures), rtol=0, atol=0)


def test_grey_pictures_are_repeated(net, pictures):
    grey = [part[:, :1] for part in pictures]
    colour = [part.repeat(1, 3, 1, 1) for part in grey]
    assert_close(PerceptualLoss(net)(*grey), PerceptualLoss(net)(*colour))


def test_pixels_are_brought_to_what_the_network_was_trained_on(net, pictures):
    seen = PerceptualLoss(nn.Identity(), mean=[0.1, 0.2, 0.3], std=0.5).features(pictures[0])[0]
    assert_close(seen[:, 1], ((pictures[0][:, 1] + 1) / 2 - 0.2) / 0.5)


def test_pictures_are_resized_to_the_size_of_the_network():
    pixels = torch.full((1, 3, 8, 8), 0.25)
    seen = PerceptualLoss(nn.Identity(), size_px=12).features(pixels)[0]
    assert_close(seen, torch.full((1, 3, 12, 12), 0.25))


def test_tokens_of_a_vision_transformer_are_features(pictures):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = ViTModel(config).eval()
    found = PerceptualLoss(model)(*pictures)
    one, other = (
        nn.functional.normalize(model(part).last_hidden_state, dim=-1) for part in pictures
    )  # (B, L, F)
    assert_close(found, ((one - other) ** 2).sum(-1).mean(1), rtol=1e-4, atol=1e-5)


def test_a_place_without_features_gives_no_endless_gradient():
    sample = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = PerceptualLoss(nn.Identity(), mean=0.5)(sample, torch.ones(1, 3, 2, 2)).sum()
    (gradient,) = torch.autograd.grad(loss, sample)
    assert gradient.isfinite().all()


def test_mistakes_are_named(net, pictures):
    with pytest.raises(ValueError, match="`layers` names 'conv', which Sequential does not have"):
        PerceptualLoss(net, ["conv"])
    with pytest.raises(ValueError, match=r"`sample` \(2, 3, 8, 8\) and `target` \(1, 3, 8, 8\)"):
        PerceptualLoss(net)(pictures[0], pictures[1][:1])
    with pytest.raises(ValueError, match="The pictures have 3 channels, the feature network reads 1"):
        PerceptualLoss(net, in_channels=1)(*pictures)
    with pytest.raises(ValueError, match=r"The feature network Flatten gives \(384,\), no map"):
        PerceptualLoss(nn.Flatten(0))(*pictures)
