"""The network of the FID: as torch-fidelity has it, with real weights or none."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import hf_mm.layers.inception as inception
from hf_mm import feature_net
from hf_mm.layers.inception import FIDInception, fid_inception, resize_as_tensorflow

# `FeatureExtractorInceptionV3` of torch-fidelity 0.4.0 with `formula_weights` on `picture`: features
# 0, 256, ..., logits 0, 200, ... Its names of weights are ours.
PEER_FEATURES = [32249.410, 1.0543419, 56143.355, 14172.584, 7835.8369, 0.0, 1348.7104, 0.0]
PEER_LOGITS = [90097.992, -43138.008, -44811.512, 100482.94, 10824.296, -79338.195]


def formula_weights(model):
    """Numbers that look random, the same everywhere."""
    weights = {}
    for number, (name, weight) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.zeros((), dtype=torch.long)
            continue
        places = torch.arange(weight.numel()).double()
        found = ((places * 12.9898 + number).sin() * 43758.5453).frac().reshape(weight.shape)
        if weight.ndim > 1:
            found = found * (6 / weight[0].numel()) ** 0.5
        else:
            found = 1 + found / 2 if name.endswith(("running_var", "bn.weight")) else found / 10
        weights[name] = found.float()
    return weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the published layout, named by its content."""
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    torch.save(formula_weights(FIDInception()), path)
    return path.rename(path.with_name(f"inception-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


@pytest.fixture
def reachable(published, monkeypatch, tmp_path):
    """The file where the network looks for it, an empty cache before it."""
    monkeypatch.setattr(inception, "INCEPTION_WEIGHTS", published.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / published.name


@pytest.mark.slow
def test_features_and_logits_are_torch_fidelitys(reachable):
    picture = (torch.arange(3 * 40 * 50) % 256).reshape(1, 3, 40, 50).float()
    features, logits = fid_inception()(picture)
    assert_close(features[0, ::256], torch.tensor(PEER_FEATURES), rtol=1e-4, atol=0.1)
    assert_close(logits[0, ::200], torch.tensor(PEER_LOGITS), rtol=1e-4, atol=1.0)  # of 1e5
    assert reachable.is_file()
    net = feature_net("inception")
    assert (net.frechet, net.kernel) == ("FID", "KID")
    assert_close(net(picture.to(torch.uint8)).features, features, rtol=1e-4, atol=0.1)


def test_pictures_are_resized_as_tensorflow_1_does():
    row = torch.tensor([[0.0, 30.0]]).reshape(1, 1, 1, 2)
    assert resize_as_tensorflow(row, 6)[0, 0, 0].tolist() == pytest.approx([0, 10, 20, 30, 30, 30])
    same = torch.rand(1, 2, 5, 5)
    assert_close(resize_as_tensorflow(same, 5), same)


def test_a_given_file_is_taken_only_if_it_is_the_published_one(reachable, published, tmp_path):
    assert fid_inception(published).fc.out_features == 1008
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(
        ValueError, match=r"other\.pth has the SHA-256 .* not the weights that define the FID"
    ):
        fid_inception(other)
    with pytest.raises(FileNotFoundError, match=r"There is no file nowhere\.pth; get it from file://"):
        fid_inception("nowhere.pth")


def test_out_of_reach_the_file_and_its_place_are_named(reachable, monkeypatch):
    monkeypatch.setattr(inception, "INCEPTION_WEIGHTS", Path("/nowhere/inception-0123abcd.pth").as_uri())
    with pytest.raises(OSError, match=r"FID needs Inception's weights, and file:///nowhere/.* cannot be"):
        fid_inception()
