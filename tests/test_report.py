from __future__ import annotations

import builtins
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from beyond_binary.data import Items, Splits
from beyond_binary.evaluation import evaluate
from beyond_binary.report import write_report
from beyond_binary.report.charts import COLOURS, density_chart, loss_chart, smoothed
from beyond_binary.report.gallery import CAPTION_LINES, _caption, _title, wrapped
from beyond_binary.report.labels import flattened, label_colours, painter, steady_tree
from beyond_binary.report.page import duration, way
from beyond_binary.report.pairs import sample_pairs, separation, spread
from beyond_binary.report.parts import number
from beyond_binary.targets import create_target
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.words import WordVectors

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """What the tests look at: balance of tags, links, ids, classes, texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {k: v or "" for k, v in attrs}
        self.found.append((tag, values))
        self.links += [v for k, v in values.items() if k in ("src", "href", "xlink:href")]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, kind: str) -> int:
        return sum(kind in values.get("class", "").split() for _, values in self.found)


def make_items(labels, first=0, mode="RGB", name="item"):
    """Small pictures whose grey value is the position."""
    images = [Image.new(mode, (12, 9), i % 256 if mode == "L" else (i % 256, 90, 30)) for i in range(len(labels))]
    names = [f"{name} {i}" for i in range(len(labels))]
    return Items(images, np.asarray(labels), names, np.arange(first, first + len(labels), dtype=np.int64))


def test_names_from_the_root_are_shown_without_their_folders(tmp_path):
    make_run(tmp_path, np.arange(24) % 3, "classes", name="/home/me/private/cat")
    shown = (tmp_path / "report.html").read_text()
    assert "/home/me" not in shown
    assert "cat 3" in shown


def make_run(
    tmp_path,
    labels,
    target,
    *,
    gallery=None,
    geometry="euclidean",
    history=None,
    title="a run",
    config=None,
    **options,
):
    """Write a report of random embeddings and return (page, table)."""
    query = make_items(labels, **options)
    refs = None if gallery is None else make_items(gallery, first=1000, name="ref")
    splits = Splits(query, query, refs, target=target)
    made = create_target(target)
    random = torch.Generator().manual_seed(0)
    z = [[s and torch.randn(len(s), 6, generator=random) for s in (query, refs)] for _ in range(2)]
    options = {"target": made, "ids": query.ids, "geometry": geometry}
    options |= {} if refs is None else {"ref_labels": refs.labels, "ref_ids": refs.ids}
    rows = {
        "before": (z[0], "embedding"),
        "after": (z[1], "embedding"),
        "random": (z[1], "random"),
        "oracle": (z[1], "oracle"),
    }
    table = {
        name: evaluate(q, query.labels, ref_embeddings=k, ranking=ranking, **options)
        for name, ((q, k), ranking) in rows.items()
    }
    metrics = {"table": table, "epochs": 2, "steps": 20, "train_seconds": 61.0}
    metrics["skipped_images"] = ["<bad>.png"]
    if history is None:
        history = [{"event": "evaluation", "epoch": 0, "step": 0, **table["before"]}]
        history += [{"epoch": s // 10, "step": s + 1, "loss": 1 / (s + 1), "lr": 0.1} for s in range(20)]
        history += [{"event": "evaluation", "epoch": e, "step": 10 * e, **table["after"]} for e in (1, 2)]
    path = tmp_path / "report.html"
    config = config or {"objective": {"loss": "log_ratio"}, "sizes": (1.0, 0.5)}
    write_report(
        path, title=title, config=config, metrics=metrics,
        history=history, splits=splits, target=made, geometry=geometry, before=tuple(z[0]), after=tuple(z[1]),
    )  # fmt: skip
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert not [tag for tag, _ in page.found if tag in ("script", "link", "iframe")]
    return page, table


def test_class_report_shows_table_neighbours_and_curves(tmp_path):
    page, table = make_run(tmp_path, np.arange(40) % 4, "classes", geometry="cosine")
    text = page.text()
    for ranking in ("before", "after", "random", "oracle"):
        assert f"{table[ranking]['map_at_r']:.4f}" in text
    assert page.count("query") == 8
    assert page.count("hits") == 16
    images = [v for tag, v in page.found if tag == "img"]
    assert len(images) == 8 * (1 + 8 + 8)
    assert all(v["alt"].startswith("item ") for v in images)
    assert text.count("✓") - 1 == sum(int(n) for n in re.findall(r"(\d) of 8 right", text))
    assert text.count("✓") + text.count("✗") == 8 * 16 + 2
    charts = [v["aria-label"] for _, v in page.found if "chart" in v.get("class", "").split()]
    shown = [name for name in table["after"] if not name.startswith("queries")]
    assert charts[:2] == ["loss per step", "learning rate per step"]
    assert charts[2 : 2 + len(shown)] == [f"{name} over epochs" for name in shown]
    assert charts[-4:-2] == [f"cosine similarity of pairs {name} training" for name in ("before", "after")]
    assert charts[-2:] == [f"map of embeddings {name} training" for name in ("before", "after")]
    assert "1 images left out" in text
    assert not (tmp_path / "distances.png").exists()  # classes have none
    picture = np.asarray(Image.open(tmp_path / "gallery.png").convert("RGB"))
    green, red = (np.all(picture == colour, -1).sum() for colour in ((0x1A, 0x9F, 0x6D), (0xDD, 0x4E, 0x4B)))
    frame = 104 * 104 - 96 * 96
    right = [int(n) for n in re.findall(r"after: (\d) of 8 right", text)]
    right = [right[i] for i in (0, 2, 3, 4, 7)]  # best, better quarter, median, worse quarter, worst
    assert green == frame * sum(right)
    assert red == frame * (40 - sum(right))


def test_captions_are_wrapped_below_the_pictures(tmp_path):
    assert wrapped("a red square is here", 9, 3, len) == ["a red", "square is", "here"]
    assert wrapped("a red square is here now", 9, 2, len) == ["a red", "square i…"]
    assert wrapped("extraordinary", 5, 2, len) == ["extraordinary"]  # the picture cuts it
    assert wrapped("a red", 5, 1, len) == ["a red"]
    assert wrapped("", 5, 2, len) == [""]
    words, rng = ["dog", "cat", "red", "ball", "man", "runs"], np.random.default_rng(0)
    texts = np.array([[" ".join(rng.choice(words, 12)), "cat"] for _ in range(20)])
    target = Captions(WordVectors(torch.eye(6), {word: i for i, word in enumerate(words)}))
    make_run(tmp_path, texts, target)
    with Image.open(tmp_path / "gallery.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    high = 104 + 16 * (2 + CAPTION_LINES) + 6
    assert pixels.shape == (5 * high, 9 * 110 + 32)
    for query in range(5):
        for column, left in enumerate([0, *(32 + 110 * np.arange(1, 9))]):
            dark = [
                (pixels[query * high + 16 + 104 + 16 * line :][:16, left : left + 104] < 200).any() for line in range(4)
            ]
            assert dark == [True, True, True, column > 0]  # neighbours have their distance above


def test_distance_report_with_a_gallery(tmp_path):
    page, _ = make_run(tmp_path, np.linspace(0, 1, 30), "euclidean", gallery=np.linspace(0, 1, 50))
    assert page.count("query") == 8
    images = [v["alt"] for tag, v in page.found if tag == "img"]
    assert sum(alt.startswith("ref ") for alt in images) == 8 * 16
    assert len(re.findall(r"mean 0\.\d{3}", page.text())) == 16
    charts = [v["aria-label"] for _, v in page.found if "chart" in v.get("class", "").split()]
    assert charts[-4:-2] == ["histogram of the neighbours' label distances", "mean label distance by place"]
    with Image.open(tmp_path / "distances.png") as picture:
        assert picture.size == (880, 704)
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("target", ["classes", "euclidean"])
def test_few_items(tmp_path, count, target):
    labels = np.zeros(count, dtype=np.int64) if target == "classes" else np.linspace(0, 1, count)
    page, _ = make_run(tmp_path, labels, target, history=[])
    assert page.count("query") == (0 if count == 1 else count)
    assert "Training" not in page.text()
    assert sum(tag == "img" for tag, _ in page.found) == (0 if count == 1 else count * (1 + 2 * (count - 1)))


def test_label_maps_grey_pictures_and_one_evaluation(tmp_path):
    maps = np.random.default_rng(0).integers(0, 5, (12, 4, 4)).astype(np.uint8)
    history = [{"event": "evaluation", "epoch": 0, "step": 0, "spearman": 0.1}]
    history += [{"step": 1, "epoch": 0, "loss": math.nan, "lr": 0.1}]
    page, _ = make_run(tmp_path, maps, "layout", mode="L", history=history)
    assert page.count("query") == 7
    charts = [v["aria-label"] for _, v in page.found if "chart" in v.get("class", "").split()]
    assert "spearman over epochs" in charts


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    config = {"objective": {"loss": evil}, evil: evil}
    page, _ = make_run(tmp_path, np.arange(20) % 2, "classes", title=evil, name=evil, config=config, history=[])
    assert page.text().count("<script>alert(1)") >= 5
    assert next(v["alt"] for tag, v in page.found if tag == "img").startswith(evil)
    assert "<bad>.png" in page.text()


def test_undefined_metrics_are_a_dash(tmp_path):
    page, table = make_run(tmp_path, np.arange(6), "classes", history=[])
    assert math.isnan(table["after"]["map_at_r"])
    rows = page.text().split("map_ at_ r ↑")[1]
    assert rows.split()[:5] == ["-"] * 5
    assert "nan" not in page.text()
    assert "No query has anything to find." in page.text()


def test_the_same_run_gives_the_same_file(tmp_path):
    texts = []
    for _ in range(2):
        make_run(tmp_path, np.arange(20) % 2, "classes", history=[])
        texts.append((tmp_path / "report.html").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("geometry", ["euclidean", "cosine", "dot"])
def test_sample_finds_the_true_neighbours(geometry):
    rng = np.random.default_rng(0)
    labels, ref_labels = rng.normal(size=(9, 2)), rng.normal(size=(23, 2))
    ref_labels[3] = labels[0]
    query, gallery = make_items(labels), make_items(ref_labels, first=5)
    q, k = torch.randn(9, 4), torch.randn(23, 4)
    other = (k[:9], q.repeat(3, 1)[:23])
    splits = Splits(query, query, gallery)
    sample = sample_pairs(splits, create_target("euclidean"), geometry, other, (q, k), k=6)
    a, b = q.double().numpy(), k.double().numpy()
    near = {
        "euclidean": -np.linalg.norm(a[:, None] - b, axis=-1),
        "dot": a @ b.T,
        "cosine": (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1),
    }[geometry]
    y = np.linalg.norm(labels[:, None] - ref_labels, axis=-1)
    np.testing.assert_allclose(sample.x["after"].abs().numpy(), np.abs(near), atol=1e-5)
    itself = query.ids[:, None] == gallery.ids
    near[itself], y[itself] = -np.inf, np.inf
    np.testing.assert_array_equal(sample.neighbours["after"], np.argsort(-near, axis=1)[:, :6])
    np.testing.assert_allclose(sample.distances["oracle"], np.sort(y, axis=1)[:, :6])
    expected = np.take_along_axis(y, sample.neighbours["after"].numpy(), 1)
    np.testing.assert_allclose(sample.distances["after"], expected)
    assert sample.y.isnan().numpy().tolist() == itself.tolist()


def test_tiles_and_samples_agree_with_the_whole(monkeypatch):
    items = make_items(np.arange(50) % 5)
    z = (torch.randn(50, 4), None)
    arguments = (Splits(items, items), create_target("nearest('euclidean', k=7)"), "euclidean", z, z)
    whole = sample_pairs(*arguments)
    monkeypatch.setattr("beyond_binary.report.pairs.TILE_PAIRS", 120)
    tiled, few = sample_pairs(*arguments), sample_pairs(*arguments, most=11)
    assert torch.equal(tiled.neighbours["after"], whole.neighbours["after"])
    assert torch.equal(tiled.distances["after"], whole.distances["after"])
    assert few.y.shape == (11, 11)
    assert few.x["before"].shape == (11, 11)
    assert torch.equal(few.distances["after"], whole.distances["after"][few.rows])


def test_spread_goes_from_best_to_worst_and_names_places():
    items = make_items(np.linspace(0, 1, 40) ** 2)
    z = (torch.randn(40, 3), None)
    sample = sample_pairs(Splits(items, items), create_target("euclidean"), "euclidean", z, z)
    score = sample.distances["after"][:, :8].mean(1)
    words = spread(sample)
    values = score[list(words)]
    assert list(words.values()) == [
        "best", "2nd best", "better quarter", "median", "worse quarter", "3rd worst", "2nd worst", "worst"
    ]  # fmt: skip
    assert values[0] == score.min()
    assert values[-1] == score.max()
    assert (values.diff() >= 0).all()


def test_separation_is_d_prime():
    x, y = torch.tensor([0.0, 2.0, 10.0, 12.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert separation(x, y, "euclidean") == pytest.approx(10)  # variances divide by n, as in the metric
    assert separation(x, y, "cosine") == pytest.approx(-10)
    assert separation(torch.cat([x, x]), torch.cat([y, y * torch.nan]), "dot") == pytest.approx(-10)
    assert math.isnan(separation(x, torch.zeros(4), "cosine"))


def test_smoothed_is_a_centred_mean_over_what_exists():
    values = np.array([1.0, 2.0, np.nan, 4.0, 10.0])
    expected = [np.nanmean(values[max(0, i - 1) : i + 2]) for i in range(5)]
    np.testing.assert_allclose(smoothed(values, 3), expected)
    np.testing.assert_allclose(smoothed(values, 1), values)


def test_numbers_durations_and_the_way_to_the_oracle():
    assert [number(v) for v in (0.12345, math.nan, None, 12345.678)] == ["0.1235", "-", "-", "1.235e+04"]
    assert [duration(s) for s in (4.21, 59.4, 200, 7500)] == ["4.2 s", "59 s", "3 min 20 s", "2 h 5 min"]
    table = {"random": {"m": 4.0}, "oracle": {"m": 2.0}, "after": {"m": 2.5}, "before": {}}
    assert way(table, "after", "m") == pytest.approx(0.75)
    assert math.isnan(way(table, "before", "m"))
    assert math.isnan(way({**table, "oracle": {"m": 4.0}}, "after", "m"))


def test_charts_follow_the_theme_and_leave_no_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg = loss_chart([1, 2, 3], [3.0, 2.0, 1.0])
    assert dict(matplotlib.rcParams) == before
    assert "var(--after)" in svg
    assert not any(code in svg for code in COLOURS.values())
    assert "width=" not in svg[: svg.index(">")]


def test_density_chart_of_constant_and_absent_pairs():
    for y in (np.full((4, 4), 0.5), np.full((4, 4), np.nan)):
        assert density_chart("a", "b", np.ones((4, 4)), y, "distance", "after").startswith("<svg")


def test_missing_matplotlib_names_the_way_out(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"beyond_binary\[plots\]"):
        loss_chart([1], [1.0])


# ---- labels on pictures and in maps


def labelled(labels):
    pictures = [Image.new("RGB", (60, 40), (90, 90, 90)) for _ in labels]
    return Items(pictures, labels, [f"item {i}" for i in range(len(labels))], np.arange(len(labels)))


def painted(spec, label):
    """Where the picture changed [40 60]."""
    items = labelled(label[None])
    image = painter(create_target(spec), items)(items.images[0], items.labels[0], 1.0)
    assert image.size == (60, 40)
    assert np.asarray(items.images[0]).std() == 0
    return (np.asarray(image) != 90).any(2)


@pytest.mark.parametrize("pixels", [False, True])
def test_skeletons_join_the_joints_that_are_seen(pixels):
    joints = np.array([[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [0.5, 0.1]])
    seen = np.array([1, 1, 1, 0])
    label = np.concatenate([joints * ((60, 40) if pixels else 1), seen[:, None]], 1)
    for spec, given in (
        ("pose", label),
        ("pose", np.where(seen[:, None], joints, np.nan) * ((60, 40) if pixels else 1)),
    ):
        changed = painted(spec, given)
        assert changed[20, 10:50].all()
        assert not changed[:15].any()
    assert (painted("pose(visibility=True)", label.ravel()) == painted("pose", label)).all()
    flat = painted("pose", joints.ravel())
    assert flat[10, 30]


def test_bones_are_the_lengths_that_vary_least():
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, 2 * np.pi, (50, 3))
    steps = np.stack([np.cos(turn), np.sin(turn)], -1)
    chain = np.concatenate([np.zeros((50, 1, 2)), steps.cumsum(1)], 1)
    order = [2, 0, 3, 1]
    bones = {frozenset(order[j] for j in bone) for bone in steady_tree(chain[:, order])}
    assert bones == {frozenset(pair) for pair in ((0, 1), (1, 2), (2, 3))}
    chain[:, 3] = np.nan
    assert len(steady_tree(chain)) == 3
    elbow = 2 * steps[:, 0]  # and a wrist that is nearer the shoulder than the elbow is, but now more and now less
    bend = turn[:, 0] + np.pi + rng.uniform(-0.7, 0.7, 50)
    wrist = elbow + 2 * np.stack([np.cos(bend), np.sin(bend)], -1)
    arm = np.stack([np.zeros((50, 2)), elbow, wrist], 1)
    assert {frozenset(bone) for bone in steady_tree(arm)} == {frozenset((0, 1)), frozenset((1, 2))}


def test_layouts_show_their_edges_and_angles_a_needle():
    label = np.zeros((20, 30), dtype=np.int64)
    label[:, 15:] = 1
    changed = painted("layout", label)
    assert changed[:, 30].all()
    assert changed.sum() == 40
    items = labelled(np.array([0.0, 90.0]))
    paint = painter(create_target("circular"), items)
    up, right = (np.asarray(paint(items.images[0], angle, 1.0)) for angle in items.labels)
    assert (up != right).any()
    both = labelled(np.array([[3.0, 0.0], [4.0, 90.0]]))
    paint = painter(
        create_target("sum((\"scaled('classes', factor=180.0)\", \"scaled('circular', factor=2.0)\"))"), both
    )
    for angle, row in zip((up, right), both.labels, strict=True):
        assert (np.asarray(paint(both.images[0], row, 1.0)) == angle).all()
    assert painter(create_target("sum(('classes', 'euclidean'))"), both) is None
    assert painter(create_target("euclidean"), labelled(np.zeros((2, 3)))) is None
    assert painter(create_target("classes"), labelled(np.zeros(2, int))) is None


def test_colours_are_near_where_labels_are_near():
    angle = np.arange(0, 360, 5.0)
    colours = label_colours(create_target("circular"), torch.as_tensor(angle)[:, None])
    gap = np.linalg.norm(colours - np.roll(colours, -1, axis=0), axis=1)
    assert gap.max() < 0.25
    assert np.linalg.norm(colours - np.roll(colours, 36, axis=0), axis=1).min() > 0.5
    assert len(np.unique(label_colours(create_target("classes"), torch.arange(12)), axis=0)) == 12
    one = label_colours(create_target("euclidean"), torch.zeros(1, 2))
    assert one.shape == (1, 3)
    poses = torch.randn(20, 4, 3)
    poses[3, :, 2] = 0
    assert np.isfinite(label_colours(create_target("pose"), poses)).all()
    assert flattened(torch.randn(5, 1)).shape == (5, 2)


def test_words_and_numbers_of_labels_are_shown(tmp_path):
    page, _ = make_run(tmp_path, np.linspace(0, 1, 40), "euclidean")
    assert "0.512821" in page.text()


def test_the_first_caption_of_an_item_is_shown():
    items = labelled(np.array([["a <red> box", "one more"], ["a star", ""]]))
    assert _title(items, 0).splitlines()[1:] == ["a <red> box", "one more"]
    words = _caption(items, 0, Splits(items, items))
    assert words == "<span>a &lt;red&gt; box</span>"
