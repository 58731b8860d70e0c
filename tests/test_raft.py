"""RAFT with weights from a file: random ones, since what is tested is the way in and out."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from floors import pixels
from safetensors.torch import save_file
from torchvision.models.optical_flow import Raft_Small_Weights, raft_large, raft_small

from mme_targets.backends import raft
from mme_targets.backends.raft import raft_flow

BUILDERS = {"raft_small": raft_small, "raft_large": raft_large}


@pytest.fixture(scope="module")
def networks():
    """Each network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return {name: build().eval() for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory) -> Path:
    """Files of their weights: `raft_small.pth` and so on."""
    path = tmp_path_factory.mktemp("weights")
    for name, network in networks.items():
        torch.save(network.state_dict(), path / f"{name}.pth")
        save_file(network.state_dict(), path / f"{name}.safetensors")
    return path


def directly(network, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As torchvision's documentation runs it, on frames [3, H, W] that need no padding."""
    prepare = Raft_Small_Weights.DEFAULT.transforms()
    with torch.no_grad():
        return network(*prepare(first[None], second[None]))[-1][0]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_it_is_what_torchvision_gives(name, suffix, networks, folder, rng):
    frames = pixels(rng, 2, 3, 128, 136)
    flow = raft_flow(frames, torch.tensor([[0, 1]]), folder / f"{name}{suffix}")
    assert flow.dtype == torch.float32
    assert flow.abs().max() > 0
    assert not flow.requires_grad
    assert torch.equal(flow[0], directly(networks[name], frames[0], frames[1]))


@pytest.mark.parametrize(("height", "width"), [(131, 150), (128, 61), (1, 1)])
def test_frames_are_continued_by_their_border_and_flow_is_cut_back(
    height, width, networks, folder, rng
):
    frames = pixels(rng, 2, 3, height, width)
    flow = raft_flow(frames, torch.tensor([[1, 0]]), folder / "raft_small.pth")
    assert flow.shape == (1, 2, height, width)
    high, wide = (max(128, (n + 7) // 8 * 8) for n in (height, width))
    top, left = (high - height) // 2, (wide - width) // 2
    rows = (torch.arange(high) - top).clamp(0, height - 1)
    columns = (torch.arange(wide) - left).clamp(0, width - 1)
    wider = frames[:, :, rows][..., columns]
    expected = directly(networks["raft_small"], wider[1], wider[0])
    assert torch.equal(flow[0], expected[:, top : top + height, left : left + width])


def test_a_pair_does_not_depend_on_the_others(folder, rng):
    frames, weights = pixels(rng, 3, 3, 128, 128), folder / "raft_small.pth"
    told: list[int] = []
    pairs = torch.tensor([[0, 1], [2, 0], [1, 1]], dtype=torch.int32)
    whole = raft_flow(frames, pairs, weights, told.append)
    assert told == [1, 1, 1]
    for k in range(2):
        assert torch.equal(raft_flow(frames[pairs[k].long()], pairs[:1], weights)[0], whole[k])
    assert raft_flow(frames, pairs[:0], weights).shape == (0, 2, 128, 128)


def test_float_frames_are_clamped_and_mixed_precision_stays_outside(folder, rng):
    frames, weights = pixels(rng, 2, 3, 128, 128), folder / "raft_small.pth"
    pairs = torch.tensor([[0, 1]])
    expected = raft_flow(frames, pairs, weights)
    wide = frames.float()
    wide[frames == 255] = 1000
    wide[frames == 0] = -3
    with torch.autocast("cpu", torch.bfloat16):
        flow = raft_flow(wide.requires_grad_(), pairs, weights)
    assert torch.equal(flow, expected)
    assert not flow.requires_grad
    flow += 1  # an ordinary tensor


def test_callers_random_numbers_are_left_alone(folder, rng):
    frames = pixels(rng, 2, 3, 128, 128)
    raft._last.key = None
    before = torch.get_rng_state()
    raft_flow(frames, torch.tensor([[0, 1]]), folder / "raft_small.pth")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_is_read_once_and_again_when_it_has_changed(folder, tmp_path, monkeypatch, rng):
    frames, pairs = pixels(rng, 2, 3, 128, 128), torch.tensor([[0, 1]])
    path = tmp_path / "w.pth"
    state = torch.load(folder / "raft_small.pth")
    torch.save({"model": state}, path)  # as torchvision's training script does
    reads = []
    built = raft._built
    monkeypatch.setattr(raft, "_built", lambda path: (reads.append(path), built(path))[1])
    first = raft_flow(frames, pairs, path)
    assert torch.equal(raft_flow(frames, pairs, path), first)
    assert len(reads) == 1
    torch.save({key: 2 * value for key, value in state.items()}, path)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(raft_flow(frames, pairs, path), first)
    assert len(reads) == 2


def test_threads_do_not_share_a_network(folder, rng):
    frames, pairs = pixels(rng, 4, 3, 128, 128), torch.tensor([[0, 1], [2, 3]])
    weights = folder / "raft_small.pth"
    expected = raft_flow(frames, pairs, weights)
    results: dict[int, torch.Tensor] = {}

    def work(k: int) -> None:
        results[k] = raft_flow(frames, pairs[k : k + 1], weights)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # A thread of its own may split a sum otherwise than the first one does.
    for k in range(2):
        torch.testing.assert_close(results[k][0], expected[k], rtol=1e-4, atol=1e-4)


def test_errors_say_what_weights_must_be(folder, tmp_path):
    frames, pairs = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.tensor([[0, 1]])

    def fails(error: type[Exception], match: str, weights: Path | None) -> None:
        with pytest.raises(error, match=match):
            raft_flow(frames, pairs, weights)

    fails(ValueError, "weights is None; method 'raft' needs a .pth", None)
    fails(FileNotFoundError, r"none\.pth, which is no file; must be a \.pth", tmp_path / "none.pth")
    fails(FileNotFoundError, "which is no file", tmp_path)
    state = torch.load(folder / "raft_small.pth")
    for name, content in (("x.bin", b""), ("junk.pt", b"junk"), ("junk.safetensors", b"junk")):
        (tmp_path / name).write_bytes(content)
    fails(ValueError, r"x\.bin; must be a \.pth", tmp_path / "x.bin")
    fails(ValueError, r"junk\.pt, which cannot be read", tmp_path / "junk.pt")
    fails(ValueError, r"junk\.safetensors, which cannot be", tmp_path / "junk.safetensors")

    def saved(content: object) -> Path:
        torch.save(content, tmp_path / "wrong.pth")
        return tmp_path / "wrong.pth"

    fails(ValueError, "holds no state dict", saved([1, 2]))
    key = next(iter(state))
    fails(ValueError, "it has no feature.*has fnet.conv1.weight", saved(
        {("fnet.conv1.weight" if k == key else k): v for k, v in state.items()}
    ))  # fmt: skip
    fails(ValueError, r"it has feature_encoder\S+ of shape \[1\], not \[32, 3, 7, 7\]", saved(
        {**state, key: torch.zeros(1)}
    ))  # fmt: skip
    fails(ValueError, f"whose {key} holds values that are not finite", saved(
        {**state, key: torch.full_like(state[key], torch.nan)}
    ))  # fmt: skip
    fails(ValueError, "no raft_large of torchvision's: it has no .* and [0-9]+ more", saved(
        {"mask_predictor.conv.weight": torch.zeros(1)}
    ))  # fmt: skip


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        raft_flow(torch.zeros(2, 3, 8, 8), torch.tensor([[0, 1]]), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_errors_name_frames(folder):
    pairs, weights = torch.tensor([[0, 1]]), folder / "raft_small.pth"
    with pytest.raises(ValueError, match=r"frames has shape \[2, 1, 16, 16\]; must be \[M, 3"):
        raft_flow(torch.zeros(2, 1, 16, 16), pairs, weights)
    with pytest.raises(TypeError, match=r"frames is torch\.float64; must be uint8 or float32"):
        raft_flow(torch.zeros(2, 3, 16, 16).double(), pairs, weights)


@pytest.mark.gpu
def test_on_a_gpu_it_is_near_the_cpu(folder, rng):
    frames, pairs = pixels(rng, 2, 3, 130, 140), torch.tensor([[0, 1]])
    expected = raft_flow(frames, pairs, folder / "raft_small.pth")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        flow = raft_flow(frames.cuda(), pairs.cuda(), folder / "raft_small.pth")
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert flow.is_cuda
    assert (flow.cpu() - expected).abs().mean() < 1e-2 * expected.abs().mean()
