"""Model cards: what the Hub reads from them, and what people do."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from beyond_binary.card import Record, bibtex, training_curves, write_card
from beyond_binary.config import Config
from beyond_binary.data import Items, Splits
from beyond_binary.hub import public_settings, public_text
from beyond_binary.losses import LOSSES
from beyond_binary.runs import data_facts, versions

EMBEDDER = {
    "trunk": "timm/resnet18", "dim": 16, "normalize": True, "head": "linear", "weights": None,
    "preprocess": {"size": [64, 96]},
}  # fmt: skip
ROW = {"queries": 40, "recall_at_1": 0.25, "map_at_r": 1 / 3, "tar_at_far_0.001": math.nan}
METRICS = {
    "table": {"before": {**ROW, "recall_at_1": 0.125}, "after": ROW, "random": ROW, "oracle": {**ROW, "recall_at_1": 1.0}},
    "epochs": 3, "target": "pose(root=(2, 3))", "steps": 12, "query_items": 40, "gallery_items": None,
    "data": {"train": {"items": 96, "hash": "a1b2"}, "query": {"items": 40, "hash": "c3d4"}},
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
}  # fmt: skip
HISTORY = [
    {"event": "evaluation", "epoch": 0, "step": 0, "recall_at_1": 0.125},
    *({"epoch": 0, "step": i + 1, "loss": 1 / (i + 1), "lr": 0.1} for i in range(12)),
    {"event": "evaluation", "epoch": 1, "step": 12, "recall_at_1": 0.25},
]


def record(source: str = "hub:user/birds", loss: str = "log_ratio", **more: Any) -> Record:
    config = asdict(Config())
    config["data"]["source"], config["objective"]["loss"] = source, loss
    return Record(config, copy.deepcopy(METRICS), **more)


def metadata(card: str) -> dict[str, Any]:
    known: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return known


def test_the_hub_reads_the_metrics_of_the_trained_embedder_from_the_card() -> None:
    card = ModelCard(write_card(EMBEDDER, "user/name", record(), license="mit"))
    results = card.data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {"recall_at_1": 0.25, "map_at_r": 0.333333}, (
        "no counts, no NaN"
    )
    assert {(r.dataset_type, r.dataset_name) for r in results} == {("user/birds", "hub:user/birds")}
    assert card.data.model_name == "name"
    assert card.data.license == "mit"
    assert card.data.datasets == ["user/birds"]
    assert card.data.library_name == "beyond_binary"
    assert set(card.data.tags) >= {"metric-learning", "timm", "loss:log_ratio"}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("hub:user/birds", ["user/birds"]),
        ("hub:cifar10", ["cifar10"]),
        ("mpii:hub:user/poses/files", ["user/poses"]),
        ("mpii:here/there", None),
    ],
)
def test_a_card_names_the_set_on_the_hub(source: str, named: list[str] | None) -> None:
    made = record(source)
    card = write_card(EMBEDDER, "user/name", made)
    assert ModelCard(card).data.datasets == named
    assert f"Trained on `{source if named else 'mpii:there'}`" in card
    assert public_settings(made.config)["data"]["source"] == (source if named else "mpii:there")


def test_the_table_has_the_untrained_the_random_and_the_best_possible_row() -> None:
    card = write_card(EMBEDDER, "user/name", record())
    assert "| metric | trained | untrained | random | best possible |" in card
    made = record()
    table = {**METRICS["table"], "frozen": {**ROW, "recall_at_1": 0.5}}
    card = write_card(EMBEDDER, "user/name", replace(made, metrics={**METRICS, "table": table}))
    assert "| metric | trained | untrained | frozen trunk | random | best possible |" in card
    assert "| recall_at_1 | 0.2500 | 0.1250 | 0.5000 | 0.2500 | 1.0000 |" in card
    made.config["embedder"]["head"] = "none"
    assert "| metric | trained | frozen trunk | random | best possible |" in write_card(EMBEDDER, "user/name", made)
    card = write_card(EMBEDDER, "user/name", record())
    assert "| recall_at_1 | 0.2500 | 0.1250 | 0.2500 | 1.0000 |" in card
    assert "| tar_at_far_0.001 | – | – | – | – |" in card
    assert "| queries |" not in card


def test_the_frozen_trunk_has_the_weights_that_were_loaded() -> None:
    run = record()
    run.config["embedder"]["pretrained"] = True  # and no tag: the library's default
    assert "(a1_in1k weights)" in write_card({**EMBEDDER, "weights": "a1_in1k"}, "user/name", run)
    assert "(random weights)" in write_card(EMBEDDER, "user/name", run)


def test_the_card_tells_data_target_paper_settings_and_versions() -> None:
    card = write_card(EMBEDDER, "user/name", record(curves="curves.png", gallery="gallery.png", report="report.html"))
    for told in (
        "| train | 96 | `a1b2` |", "| query | 40 | `c3d4` |", "Deep Metric Learning Beyond Binary Supervision",
        "- epochs: 3", "optimizer.lr: 0.001", "- target: `pose(root=(2, 3))`", "torch 2.15.0", "![Training curves](curves.png)", "(gallery.png)", "(report.html)",
        "has not chosen a licence", 'Image.new("RGB", (96, 64), colour)', "40 held-out queries, searched among themselves",
    ):  # fmt: skip
        assert told in card, told
    plain = write_card(EMBEDDER, "user/name", record())
    assert "curves" not in plain
    assert "gallery" not in plain
    assert "report.html" not in plain


@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_loss_is_cited(loss: str) -> None:
    assert f"- loss: `{loss}` ({LOSSES[loss].info['facts'].paper})" in write_card(EMBEDDER, "a/b", record(loss=loss))


@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_citation_has_the_registrys_facts_and_no_others(loss: str) -> None:
    paper = LOSSES[loss].info["facts"].paper
    card = write_card(EMBEDDER, "a/b", record(loss=loss))
    block = re.search(r"```bibtex\n(.*?)```", card, re.DOTALL)
    assert block is not None
    entries = re.findall(r"@(\w+)\{(\w+),\n(.*?)\n\}", block[1], re.DOTALL)
    assert len(entries) == paper.count("; ") + 1
    assert len({key for _, key, _ in entries}) == len(entries)
    for _, _, fields in entries:
        known = dict(re.findall(r"^  (\w+) = \{(.*)\},$", fields, re.MULTILINE))
        assert len(known) == fields.count("\n") + 1
        names = known["author"].replace(" and others", " et al.").replace(" and ", ", ")
        venue = "".join(known.get(field, "") + " " for field in ("booktitle", "howpublished") if field in known)
        assert f"{names}: {known['title'][1:-1]}, {venue}{known['year']}" in paper


def test_bibtex() -> None:
    assert bibtex("Roe et al.: Losses: a, b, ABCD 2019; Doe, Poe: Others, 2017 (a note)") == (
        "@inproceedings{roe2019,\n  author = {Roe and others},\n  title = {{Losses: a, b}},\n  booktitle = {ABCD},\n"
        "  year = {2019},\n}\n@misc{doe2017,\n  author = {Doe and Poe},\n  title = {{Others}},\n  year = {2017},\n}"
    )
    with pytest.raises(ValueError, match="expected 'AUTHORS: TITLE, VENUE YEAR', got 'something'"):
        bibtex("something")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": "a1_in1k"}, {"base_model": "timm/resnet18.a1_in1k"}),
        ({"trunk": "timm/resnet18.old", "weights": "a1_in1k"}, {"base_model": "timm/resnet18.a1_in1k"}),
        ({"weights": "hf-hub:user/net"}, {"base_model": "user/net"}),
        ({"weights": "mine.safetensors"}, {"base_model": None}),
        ({"trunk": "open_clip/ViT-B-32", "weights": "mine.safetensors"}, {"base_model": None}),
        (
            {"trunk": "open_clip/ViT-B-32", "weights": "laion2b_s34b_b79k"},
            {"base_model": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"},
        ),
        ({"trunk": "open_clip/ViTamin-S", "weights": "datacomp1b"}, {"base_model": "jienengchen/ViTamin-S"}),
        ({"trunk": "open_clip/ViT-B-32"}, {"pipeline_tag": "image-feature-extraction"}),
        ({"trunk": "open_clip/ViT-B-32", "head": "none"}, {"pipeline_tag": "zero-shot-image-classification"}),
    ],
)
def test_metadata_follow_the_embedder(change: dict[str, Any], expected: dict[str, Any]) -> None:
    card = write_card({**EMBEDDER, **change}, "user/name")
    assert {key: metadata(card).get(key) for key in expected} == expected
    assert ("pretrained weights" in card) == ("weights" in change)
    assert "model-index" not in metadata(card)


def test_a_run_without_numbers_or_hashes_has_a_card() -> None:
    made = record("/home/me/photos")
    metrics = {"table": {"after": {"recall_at_1": math.nan}}}
    card = write_card(EMBEDDER, "user/name", replace(made, metrics=metrics))
    assert "model-index" not in metadata(card)
    assert "kept no hashes" in card
    assert "- source: `photos`" in card
    assert "/home/me" not in card.split("<details>")[0]


def test_local_paths_are_shortened() -> None:
    settings = {
        "output": "/home/me/run", "data": {"source": "mpii:/home/me/poses", "cache": "hub:user/name", "rows": [1, 2]},
        "weights": "~/net.safetensors", "pattern": "*_[xy]", "steps": ["../a/b", "a/b"], "none": None,
    }  # fmt: skip
    assert public_settings(settings) == {
        "data": {"source": "mpii:poses", "cache": "hub:user/name", "rows": [1, 2]},
        "weights": "net.safetensors", "pattern": "*_[xy]", "steps": ["b", "a/b"], "none": None,
    }  # fmt: skip
    page = public_text("<p>supcon on mpii:/home/me/poses</p><p>/home/me/run</p>", settings)
    assert page == "<p>supcon on mpii:poses</p><p>run</p>"
    page = public_text('<div>/d /dx "/d"</div><img src="data:image/png;base64,iV/d+/d=="/d/x>', {"output": "/d"})
    assert page == '<div>d /dx "d"</div><img src="data:image/png;base64,iV/d+/d=="d/x>'
    assert public_text("nothing", {}) == "nothing"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("clients/acme/photos", "photos"), (r"C:\Users\me\photos", "photos"), ("cub:clients/acme", "cub:acme"),
        ("D:/photos", "photos"), (r"cub:C:\Users\birds", "cub:birds"), ("hub:user/name", "hub:user/name"),
        ("embedded:digits", "embedded:digits"), ("photos.zip", "photos.zip"), (".", "."),
    ],
)  # fmt: skip
def test_a_source_that_is_on_this_machine_is_shortened(source: str, shown: str) -> None:
    data = {"data": {"source": source}}
    assert public_settings(data) == {"data": {"source": shown}}
    assert public_text(f"on {source}.", data) == f"on {shown}."


@pytest.mark.parametrize("text", ["it's black/white, isn't it", "a 'x' b/c 'y'", "hf-hub:user/name", "hub:user/name"])
def test_other_texts_are_left_alone(text: str) -> None:
    settings = {"prompts": [text]} if " " in text else {"weights": text}
    assert public_settings(settings) == settings


def test_paths_within_a_spec_are_shortened() -> None:
    target = "sum((captions(vectors='glove/x.txt'), 'classes'))"
    assert public_settings({"target": target}) == {"target": "sum((captions(vectors='x.txt'), 'classes'))"}


def test_the_commit_of_a_set_on_the_hub_is_told() -> None:
    run = record()
    run.config["data"]["revision"] = "v1"
    assert {r.dataset_revision for r in ModelCard(write_card(EMBEDDER, "a/b", run)).data.eval_results} == {"v1"}
    run.metrics["origin"] = {
        "set": "user/birds",
        "config": "full",
        "splits": ["train"],
        "revision": "v1",
        "commit": "c0ffee",
    }
    card = write_card(EMBEDDER, "a/b", run)
    assert {r.dataset_revision for r in ModelCard(card).data.eval_results} == {"c0ffee"}
    assert "- config: `full`\n" in card
    assert "- commit: `c0ffee`\n" in card


def test_hashes_follow_ids_names_and_labels() -> None:
    def items(labels: np.ndarray, names: str = "abc") -> Items:
        return Items([Image.new("RGB", (1, 1))] * 3, labels, list(names), np.arange(3))

    numbers = np.array([0, 1, 2])
    first = data_facts(Splits(items(numbers), items(numbers)))
    assert first.keys() == {"train", "query"}
    assert first["train"] == first["query"]
    assert first["train"]["items"] == 3
    other = [items(np.array([0, 1, 1])), items(numbers, "abd"), items(numbers.astype(float))]
    assert len({data_facts(Splits(i, i))["train"]["hash"] for i in [items(numbers), *other]}) == 4
    texts = [np.array([["a"], ["b"], ["c" * n]], dtype=object) for n in (1, 1, 2)]
    hashes = [data_facts(Splits(items(t), items(t)))["train"]["hash"] for t in texts]
    assert hashes[0] == hashes[1] != hashes[2]


def test_versions_name_what_computes() -> None:
    assert versions().keys() >= {"python", "torch", "timm", "numpy"}


def test_training_curves_are_a_png_of_loss_and_main_metric() -> None:
    png = training_curves(HISTORY, METRICS["table"])  # type: ignore[arg-type]
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert png == training_curves(HISTORY, METRICS["table"])  # type: ignore[arg-type]
    assert training_curves([], METRICS["table"]) is None  # type: ignore[arg-type]
