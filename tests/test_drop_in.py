"""Objectives where timm and open_clip expect their losses: the libraries' own tasks and models around them."""

from __future__ import annotations

import open_clip
import pytest
import torch
from accelerate import PartialState, debug_launcher
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from timm.task import ClassificationTask
from torch.nn.parallel import DistributedDataParallel

import beyond_binary as bb
from beyond_binary import clip, distributed
from beyond_binary.clip import ClipCriterion


def test_timms_task_trains_an_embedder_and_its_proxies() -> None:
    model = bb.create_embedder("timm/test_vit", dim=8, image_size=32)
    objective = bb.create_objective("proxy_anchor", num_classes=3, dim=8)
    task = ClassificationTask(model, criterion=objective, verbose=False)
    images, target = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    result = task(images, target)
    torch.testing.assert_close(result["loss"], objective(model(images), target))
    result["loss"].backward()
    with_gradient = {id(p) for p in task.parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert id(objective.proxies.weight) in with_gradient
    assert id(model.head[0].weight) in with_gradient


def gradients_of_a_task(part: slice, several: bool) -> dict[str, torch.Tensor]:
    """What timm's task leaves at the parameters of a small network and of the proxies, from a part of the batch."""
    torch.manual_seed(0)
    model, images = torch.nn.Linear(5, 4).double(), torch.randn(6, 5, dtype=torch.float64)
    task = ClassificationTask(model, bb.create_objective("proxy_anchor", num_classes=3, dim=4).double(), verbose=False)
    if several:
        task.prepare_distributed()
        task.criterion = DistributedDataParallel(task.criterion)
    task(images[part], (torch.arange(6) % 3)[part])["loss"].backward()
    return {name.replace("module.", ""): p.grad for name, p in task.named_parameters() if p.grad is not None}


def share_a_task(folder: str) -> None:
    torch.set_num_threads(1)
    PartialState._reset_state()  # of the process that this one is a copy of
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    part = slice(0, 4) if state.process_index == 0 else slice(4, 6)
    save_file(gradients_of_a_task(part, True), f"{folder}/{state.process_index}.safetensors")


@pytest.mark.slow
def test_timms_task_on_two_processes_equals_one(tmp_path) -> None:
    debug_launcher(share_a_task, (str(tmp_path),), num_processes=2)
    expected = gradients_of_a_task(slice(0, 6), False)
    assert len(expected) == 3
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("labels", [None, torch.arange(7) // 2])
def test_what_a_memory_holds_is_of_other_items(labels) -> None:
    """Batch after batch, items are numbered on: the i-th of this one is not the i-th of the last."""
    criterion = ClipCriterion(bb.create_objective("contrastive", memory=14))
    other = bb.create_objective("contrastive", memory=14)
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        images, texts = (torch.randn(7, 5, generator=generator) for _ in range(2))
        ids = 7 * number + torch.arange(7)
        given = ids if labels is None else labels
        torch.testing.assert_close(
            criterion(images, texts, labels=labels), other(*clip.beside(images, texts, given, ids)[:2])
        )


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))


def test_across_is_open_clips_own_loss(features) -> None:
    """With the cross-entropy over a row's only positive and a temperature of one over the scale."""
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    criterion = ClipCriterion(bb.create_objective("nt_xent", temperature=1 / 20), across=True)
    unit = [torch.nn.functional.normalize(z) for z in features]  # as open_clip's models do
    ours = criterion(*unit, logit_scale=scale, output_dict=True)
    theirs = ClipLoss()(*unit, scale, output_dict=True)
    assert ours.keys() == theirs.keys() == {"contrastive_loss"}
    torch.testing.assert_close(ours["contrastive_loss"], theirs["contrastive_loss"])
    expected = torch.autograd.grad(theirs["contrastive_loss"], features, retain_graph=True)
    got = torch.autograd.grad(ours["contrastive_loss"], (*features, scale))
    torch.testing.assert_close(got[:2], expected)
    assert got[2] == 0


def test_as_one_batch_images_are_compared_with_images(features) -> None:
    objective = bb.create_objective("supcon")
    value = ClipCriterion(objective)(*features, torch.tensor(20.0))
    torch.testing.assert_close(value, objective(torch.cat(features), torch.arange(7).repeat(2)))
    labels = torch.rand(7, 2, dtype=torch.float64)
    graded = ClipCriterion(bb.create_objective("log_ratio", target="euclidean"))
    z, both, ids = clip.beside(*features, labels, torch.arange(7))
    torch.testing.assert_close(graded(*features, labels=labels), graded.objective(z, both, ids=ids))


def test_open_clips_output_goes_in_as_it_is() -> None:
    model = open_clip.CLIP(
        8,
        {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16},
        {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1},
        output_dict=True,
    )
    objective = bb.create_objective("proxy_anchor", num_classes=4, dim=8)
    criterion = ClipCriterion(objective)
    out = model(torch.randn(4, 3, 32, 32), torch.randint(1, 99, (4, 8)))
    losses = criterion(**out, output_dict=True)  # as open_clip_train does
    sum(losses.values()).backward()
    assert model.logit_scale.grad == 0
    assert model.text_projection.grad.abs().max() > 0
    assert len(list(criterion.parameters())) == 1


def test_labels_differ_between_processes(features, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    monkeypatch.setattr(distributed, "sizes", lambda n, device: [4, 5, n])
    criterion = ClipCriterion(bb.create_objective("supcon", gather=False))
    monkeypatch.setattr(clip, "beside", lambda *given: seen.append(given[2:]) or (torch.cat(features), *_twice(given)))
    criterion(*features)
    assert seen[0][0].tolist() == seen[0][1].tolist() == list(range(9, 16))


def _twice(given):
    return given[2].repeat(2), torch.arange(14)


def test_a_target_other_than_classes_needs_labels(features) -> None:
    """Places in the batch would be read as magnitudes."""
    for across in (False, True):
        criterion = ClipCriterion(bb.create_objective("log_ratio", target="euclidean"), across=across)
        with pytest.raises(ValueError, match="target Euclidean needs labels="):
            criterion(*features)
