"""Objectives saved beside embedders: what comes back is what was saved, bit for bit, and other libraries do not mind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cases import DIM, FIRST, build, inputs
from oracles import Case
from safetensors.torch import save_file

import beyond_binary as bb
from beyond_binary import hub, storage
from beyond_binary.geometry import create_geometry
from beyond_binary.targets import create_target

MODEL = bb.create_embedder("timm/test_efficientnet", dim=DIM, image_size=32)


def saved(folder: Path, objective: bb.Objective) -> bb.Objective:
    MODEL.save_pretrained(folder, objective=objective)
    return bb.Objective.from_pretrained(folder)


def same(a: bb.Objective, b: bb.Objective) -> bool:
    """Whether names, types and bits of all tensors and the settings are the same."""
    states = [objective.learned() for objective in (a, b)]
    return (
        a.config == b.config
        and states[0].keys() == states[1].keys()
        and all(states[1][k].dtype == v.dtype and torch.equal(states[1][k], v) for k, v in states[0].items())
    )


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_every_objective_comes_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    z, labels, _ = inputs(case)
    objective = build(case)
    objective(z, labels)  # counters and running means are no longer at their start
    again = saved(tmp_path / "e", objective)
    assert same(objective, again)
    assert [p.requires_grad for p in objective.parameters()] == [p.requires_grad for p in again.parameters()]
    rest = copy.deepcopy(objective)
    assert torch.equal(again(z, labels), rest(z, labels))
    assert bb.Embedder.from_pretrained(tmp_path / "e").target == case.target


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "pd_loss", "target": "within('euclidean', radius=0.3)", "dim": DIM, "proxy_codes": torch.rand(3, 2)},
        {"loss": "log_ratio", "target": "estimated(weight=0.25)", "num_classes": 3, "dim": DIM},
        {"loss": "margin", "beta_per_class": True, "num_classes": 3, "mining": "distance_weighted(cutoff=0.4)"},
        {"loss": "supcon", "memory": 6, "geometry": "dot", "block": None, "gather": False, "temperature": 0.5},
    ],
    ids=["labels of proxies", "running means", "boundaries", "memory"],
)
def test_labels_of_proxies_running_means_and_settings_come_back(options: dict[str, Any], tmp_path: Path) -> None:
    objective = bb.create_objective(**options).double()
    labels = torch.rand(5, 2) if "euclidean" in options.get("target", "") else torch.tensor([0, 1, 2, 0, 1])
    objective(torch.randn(5, DIM, dtype=torch.float64), labels)
    again = saved(tmp_path / "e", objective)
    assert same(objective, again)
    z = torch.randn(5, DIM, dtype=torch.float64)
    if objective.memory is not None:
        assert again.memory is not None
        assert not hasattr(again.memory, "z"), "embeddings and labels of items are not saved"
        assert not (tmp_path / "e" / storage.OBJECTIVE_FILE).exists()
        again.memory, objective.memory = None, None
    assert torch.equal(objective.eval()(z, labels), again.eval()(z, labels))


def test_how_proxies_start_was_once_kept_where_there_are_none(tmp_path: Path) -> None:
    objective = bb.create_objective("triplet")
    objective.config["proxy_init"] = "class_mean"
    assert saved(tmp_path / "e", objective).loss == "triplet"


def test_settings_are_resolved_and_plain(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "e", objective=bb.create_objective("proxy_anchor", num_classes=3, dim=DIM))
    told = json.loads((tmp_path / "e" / "config.json").read_text())["beyond_binary"]["objective"]
    assert told == {
        "loss": "proxy_anchor", "target": "classes", "geometry": "cosine", "mining": None, "num_classes": 3, "dim": DIM,
        "proxy_init": "random", "memory": 0, "gather": True, "block": 1024, "anchors": None, "options": {"alpha": 32.0, "margin": 0.1},
        "has_tensors": True,
    }  # fmt: skip


def test_the_trunk_is_still_timms_and_old_files_go(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    saved(folder, bb.create_objective("proxy_nca", num_classes=3, dim=DIM))
    x = torch.randn(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(x), copy.deepcopy(MODEL.trunk).eval()(x))
    again = bb.Embedder.from_pretrained(folder)
    assert again.target == "classes"
    again.save_pretrained(folder)
    assert not (folder / storage.OBJECTIVE_FILE).exists()
    assert bb.Embedder.from_pretrained(folder).target == "classes", "what it was trained for is not forgotten"
    with pytest.raises(ValueError, match=r"what the objective learned was left out; .*create_objective\('proxy_nca'"):
        bb.Objective.from_pretrained(folder)


def test_objects_in_the_place_of_specs_are_given_again(tmp_path: Path) -> None:
    target, geometry = create_target("circular(period=7)"), create_geometry("euclidean(normalize=True)")
    objective = bb.create_objective("log_ratio", target=target, geometry=geometry)
    MODEL.save_pretrained(tmp_path / "e", objective=objective)
    assert bb.Embedder.from_pretrained(tmp_path / "e").target is None
    with pytest.raises(ValueError, match="was made with objects instead of specs; pass target=, geometry= again"):
        bb.Objective.from_pretrained(tmp_path / "e")
    again = bb.Objective.from_pretrained(tmp_path / "e", target=target, geometry=geometry)
    z, angles = torch.randn(5, DIM), torch.arange(5.0)
    assert torch.equal(objective(z, angles), again(z, angles))


def test_what_is_no_saved_objective_is_told(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "plain")
    assert bb.Embedder.from_pretrained(tmp_path / "plain").target is None
    with pytest.raises(ValueError, match=r"holds an embedder alone; save it with save_pretrained\(\.\.\., objective="):
        bb.Objective.from_pretrained(tmp_path / "plain")
    saved(tmp_path / "e", bb.create_objective("proxy_nca", num_classes=3, dim=DIM))
    save_file({"proxies.weight": torch.zeros(4, DIM)}, tmp_path / "e" / storage.OBJECTIVE_FILE)
    with pytest.raises(ValueError, match=r"the tensors in .*beyond_binary_objective.safetensors do not fit"):
        bb.Objective.from_pretrained(tmp_path / "e")
    (tmp_path / "e" / storage.OBJECTIVE_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        bb.Objective.from_pretrained(tmp_path / "e")


def test_local_paths_in_a_target_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("0,1,2.5\n")
    spec = f"pair_scores('{tmp_path}/table.csv')"
    MODEL.save_pretrained(tmp_path / "e", objective=bb.create_objective("log_ratio", target=spec))
    sent = hub.embedder_files(tmp_path / "e", "user/name", card=False)["config.json"]
    assert isinstance(sent, bytes)
    assert json.loads(sent)["beyond_binary"]["objective"]["target"] == "pair_scores('table.csv')"
    assert str(tmp_path).encode() not in sent
