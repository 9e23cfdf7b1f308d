"""Captions: word vectors and tokens, word mover's distance against linear programs, its search, sentence embeddings."""

from __future__ import annotations

import gzip
import itertools
import math
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import beyond_binary as bb
from beyond_binary import neighbours
from beyond_binary.neighbours import label_neighbours
from beyond_binary.targets import captions as module
from beyond_binary.targets import transport
from beyond_binary.targets.algebra import Scaled
from beyond_binary.targets.captions import Captions, embed_captions, search
from beyond_binary.targets.words import Reader, WordVectors, load_word_vectors, tokenize

WORDS = ["dog", "cat", "runs", "sits", "on", "the", "grass", "red", "ball", "child"]
VALUES = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
VECTORS = WordVectors(torch.from_numpy(VALUES), {word: i for i, word in enumerate(WORDS)})
RELAXED, EXACT = Captions(VECTORS), Captions(VECTORS, relaxed=False)
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)


def texts_of(least: int, most: int, captions: int) -> st.SearchStrategy[list[list[str]]]:
    """Items of one caption and further ones that may be missing, at any place."""
    rest = st.lists(TEXT | st.just(""), min_size=captions - 1, max_size=captions - 1)
    item = st.tuples(TEXT, rest).flatmap(lambda both: st.permutations([both[0], *both[1]]))
    return st.lists(item, min_size=least, max_size=most)


def random_texts(n: int, captions: int = 3, seed: int = 0, missing: float = 0.2) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    made = [[" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(captions)] for _ in range(n)]
    return [
        [t if c == i % captions or rng.random() > missing else "" for c, t in enumerate(x)] for i, x in enumerate(made)
    ]


# ---- oracles: plain loops over captions and words in double precision


def bag(text: str) -> dict[str, float]:
    count = Counter(text.split())
    return {word: times / count.total() for word, times in count.items()}


def far(a: str, b: str) -> float:
    p, q = VALUES[WORDS.index(a)].tolist(), VALUES[WORDS.index(b)].tolist()
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True)))


def word_mover(a: str, b: str) -> float:
    """The least cost of a transport plan, as a linear program."""
    p, q = bag(a), bag(b)
    costs = [far(v, w) for v, w in itertools.product(p, q)]
    rows = [[float(v == u) for v, _ in itertools.product(p, q)] for u in p]
    columns = [[float(w == u) for _, w in itertools.product(p, q)] for u in q]
    found = linprog(costs, A_eq=rows + columns, b_eq=[*p.values(), *q.values()], bounds=(0, None))
    assert found.status == 0
    return float(found.fun)


def one_sided(a: str, b: str) -> float:
    return sum(mass * min(far(word, other) for other in bag(b)) for word, mass in bag(a).items())


def relaxed_mover(a: str, b: str) -> float:
    return max(one_sided(a, b), one_sided(b, a))


def item_distance(a: list[str], b: list[str], between: Any, mean: bool = False) -> float:
    a, b = [x for x in a if x], [x for x in b if x]
    best = [min(between(x, y) for y in b) for x in a] + [min(between(x, y) for x in a) for y in b]
    return sum(best) / (len(best) if mean else 1)


def distances(target: Any, a: Any, b: Any) -> np.ndarray[Any, Any]:
    return np.asarray(target.distance(target.encode(a), target.encode(b)).double())


@settings(max_examples=20, deadline=None)
@given(texts_of(1, 3, 3), texts_of(1, 3, 2), st.booleans())
def test_items_are_the_sum_of_best_matches_both_ways(a: Any, b: Any, mean: bool) -> None:
    for relaxed, between in ((True, relaxed_mover), (False, word_mover)):
        target = Captions(VECTORS, relaxed=relaxed, reduce="mean" if mean else "sum")
        expected = [[item_distance(x, y, between, mean) for y in b] for x in a]
        np.testing.assert_allclose(distances(target, a, b), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_the_exact_distance_of_texts_is_a_metric_above_the_relaxed_one(a: str, b: str, c: str) -> None:
    texts = [[a], [b], [c]]
    exact, relaxed = distances(EXACT, texts, texts), distances(RELAXED, texts, texts)
    assert (relaxed <= exact + 1e-5).all()
    np.testing.assert_allclose(exact, exact.T, atol=1e-12)
    np.testing.assert_array_equal(relaxed, relaxed.T)
    assert (exact.diagonal() == 0).all()
    assert (relaxed.diagonal() == 0).all()
    assert (exact <= (exact[:, :, None] + exact[None]).min(1) + 1e-5).all()


@settings(max_examples=50, deadline=None)
@given(TEXT, TEXT)
def test_bounds_from_a_dual_solution_lie_between(a: str, b: str) -> None:
    p, q = bag(a), bag(b)
    costs = np.array([[far(v, w) for w in q] for v in p], dtype=np.float32)[:, :, None]
    masses = [np.array(list(x.values()))[:, None] for x in (p, q)]
    bound = transport.reduced(*masses, costs)[0]
    assert relaxed_mover(a, b) - 1e-5 <= bound <= word_mover(a, b) + 1e-5
    assert transport.solve(*masses, costs)[0] == pytest.approx(word_mover(a, b), abs=1e-5)


def test_longer_texts_are_pots_emd() -> None:
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(200)]
    values = rng.normal(size=(200, 25)).astype(np.float32)
    target = Captions(WordVectors(torch.from_numpy(values), {w: i for i, w in enumerate(words)}), relaxed=False)
    numbers = [rng.integers(0, 200, rng.integers(1, 40)) for _ in range(12)]
    y = distances(target, *2 * [[[" ".join(words[i] for i in x)] for x in numbers]])
    for (i, a), (j, b) in itertools.combinations(enumerate(numbers), 2):
        (u, p), (v, q) = (np.unique(x, return_counts=True) for x in (a, b))
        costs = np.linalg.norm(values[u, None].astype(float) - values[v], axis=2)
        assert y[i, j] == pytest.approx(2 * ot.emd2(p / p.sum(), q / q.sum(), costs), rel=1e-6)


def test_the_order_of_words_does_not_count_but_their_number_does() -> None:
    for target in (RELAXED, EXACT):
        assert distances(target, [["dog dog cat"]], [["dog cat dog"]]).item() == 0
        assert distances(target, [["dog cat"]], [["dog cat dog cat"]]).item() == pytest.approx(0, abs=1e-6)
    y = distances(EXACT, [["dog dog cat"]], [["dog cat"]]).item()
    assert y == pytest.approx(2 * far("dog", "cat") * (2 / 3 - 1 / 2), rel=1e-6)


@pytest.mark.parametrize("target", [RELAXED, EXACT], ids=["relaxed", "exact"])
def test_tiles_padding_and_pairs_that_do_not_count(target: Captions, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(9)
    code = target.encode(texts)
    whole = target.distance(code, code)
    valid = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    valid[4], valid[:, 2] = False, False
    for tile in (1, 60, 2**22):
        monkeypatch.setattr(module, "TILE", tile)
        assert target.distance(code, code).equal(whole)
        some = target.distance(code, code, valid)
        assert some.isnan().equal(~valid)
        assert some[valid].equal(whole[valid])
    wide = torch.nn.functional.pad(code, (0, 5), value=-1)
    wide = torch.cat([wide, torch.full_like(wide[:, :1], -1)], 1)
    assert target.distance(wide, code).equal(whole)
    assert target.distance(wide[:0], code).shape == (0, 9)


def test_solves_are_left_out_where_pairs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def solve(a: Any, b: Any, costs: Any) -> Any:
        seen.append(a.shape[-1])
        return real(a, b, costs)

    real = transport.solve
    monkeypatch.setattr(transport, "solve", solve)
    code = EXACT.encode(random_texts(8, missing=0))
    EXACT.distance(code, code)
    every = sum(seen)
    seen.clear()
    EXACT.distance(code, code, torch.eye(8, dtype=torch.bool).roll(1, 0))
    assert 0 < sum(seen) < every / 4
    assert every < 64 * 9, "bounds settle some of the pairs"


# ---- exact neighbours


@pytest.mark.parametrize(("n", "k", "captions"), [(40, 5, 3), (30, 29, 2), (25, 1, 1)])
def test_neighbours_are_those_of_the_whole_table(n: int, k: int, captions: int) -> None:
    texts = random_texts(n, captions, seed=n)
    texts[3] = texts[7]
    code = EXACT.encode(texts)
    indices, found = label_neighbours(EXACT, code, k)
    table = EXACT.distance(code, code).fill_diagonal_(torch.inf)
    expected, where = table.sort(dim=1, stable=True)
    assert indices.equal(where[:, :k])
    assert found.equal(expected[:, :k])
    assert indices[3, 0] == 7


def test_scaled_captions_keep_their_own_search(monkeypatch: pytest.MonkeyPatch) -> None:
    code = EXACT.encode(random_texts(30, 2, seed=3))
    indices, found = label_neighbours(EXACT, code, 4)
    twice = Scaled(Scaled(EXACT, 4.0), 0.5)
    expected = twice.distance(code, code).fill_diagonal_(torch.inf).sort(dim=1, stable=True)

    def never(*arguments: object) -> None:
        raise AssertionError("all pairs were compared")

    monkeypatch.setattr(Captions, "distance", never)
    scaled = label_neighbours(twice, code, 4)
    assert scaled[0].equal(indices)
    assert scaled[1].equal(2 * found)
    assert scaled[1].equal(expected.values[:, :4])
    assert Scaled(RELAXED, 2.0).neighbours is None
    monkeypatch.setattr(neighbours, "LARGE", 10)
    assert neighbours._choose(twice, code) == "exact"


def test_neighbours_leave_out_equal_ids_and_say_where_none_is_left() -> None:
    texts = random_texts(12)
    code, ids = EXACT.encode(texts), torch.arange(12) // 4
    indices, found = label_neighbours(EXACT, code, 10, ids=ids)
    assert (indices[:, :8] >= 0).all()
    assert (ids[indices[:, :8]] != ids[:, None]).all()
    assert (indices[:, 8:] == -1).all()
    assert found[:, 8:].isnan().all()


@pytest.mark.slow
def test_a_search_over_processes_gives_the_same_with_few_solves() -> None:
    texts = random_texts(700, captions=2, seed=5)
    code = EXACT.encode(texts)
    indices, found, solved = search(code, VECTORS.vectors, 5)
    rows = torch.arange(0, 700, 90)
    table = EXACT.distance(code[rows], code)
    table[torch.arange(len(rows)), rows] = torch.inf
    expected, where = table.sort(dim=1, stable=True)
    assert indices[rows].equal(where[:, :5])
    assert found[rows].equal(expected[:, :5])
    assert solved < 0.2 * 700 * 700 * 4


def test_relaxed_neighbours_are_those_of_the_relaxed_distance() -> None:
    code = RELAXED.encode(random_texts(20))
    indices, _ = label_neighbours(RELAXED, code, 4)
    table = RELAXED.distance(code, code).fill_diagonal_(torch.inf)
    assert indices.equal(table.sort(dim=1, stable=True).indices[:, :4])


# ---- word vectors


@pytest.mark.parametrize("form", ["glove", "word2vec", "gzip", "npz", "half"])
def test_word_vectors_from_files(form: str, tmp_path: Path) -> None:
    words = ["the", "dog", ". . .", "naïve", "Paris", "the"]
    values = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float16 if form == "half" else np.float32)
    lines = [" ".join([w, *map(repr, v.tolist())]) for w, v in zip(words, values, strict=True)]
    path = tmp_path / ("v.npz" if form in ("npz", "half") else "v.txt.gz" if form == "gzip" else "v.txt")
    if path.suffix == ".npz":
        np.savez(path, words=words, vec=values)
    else:
        text = "\n".join(["6 4", *(line + " " for line in lines)] if form == "word2vec" else lines) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if form == "gzip" else text.encode())
    read = load_word_vectors(path)
    assert read.vectors.dtype == torch.float32
    np.testing.assert_array_equal(read.vectors, values.astype(np.float32))
    assert read.index == {"the": 0, "dog": 1, ". . .": 2, "naïve": 3, "Paris": 4, "paris": 4}
    assert bb.create_target(f"captions(vectors={str(path)!r})").encode([["The dog, naïve!"]])[0, 0, :4].tolist() == [
        0,
        1,
        3,
        -1,
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"dog 1 2\ncat 1\n", "line 2: expected a word and 2 numbers, got 'cat 1"),
        ("v.txt", b"2 2\ndog 1 2\ncat 1 x\n", "line 3: expected a word and 2 numbers"),
        ("v.txt", b"dog\n", "line 1: expected a word and its numbers"),
        ("v.txt", b"", "holds no word vectors"),
        ("v.txt", b"dog 1 nan\n", "the vector of 'dog' is not finite"),
        ("v.bin", b"2 2\ndog \x80\xff\x00\x00", "is no text file; .*save_word2vec_format"),
        ("v.npz", b"not a zip", "expected an npz file"),
    ],
)
def test_files_that_hold_no_word_vectors(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_word_vectors(tmp_path / name)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", words=np.array(["dog"], dtype=object), vec=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="expected an npz file of `words`"):
        load_word_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", words=["dog"], vec=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="1 words but 2 vectors"):
        load_word_vectors(tmp_path / "v.npz")
    np.savez(tmp_path / "v.npz", words=[1], vec=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="expected `words` as text"):
        load_word_vectors(tmp_path / "v.npz")
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        load_word_vectors(tmp_path / "nothing.txt")


# ---- texts to words


def test_tokens_and_unknown_words() -> None:
    assert tokenize("A dog's T-shirt, 2 (red) balls... don’t_run -- Ünï") == [
        "a", "dog's", "t-shirt", "2", "red", "balls", "don't", "run", "ünï",
    ]  # fmt: skip
    index = {w: i for i, w in enumerate(["dog", "run", "climb", "berry", "make", "shirt", "t", "class"])}
    found = {
        "dogs": ["dog"], "dog's": ["dog"], "running": ["run"], "climbed": ["climb"], "berries": ["berry"],
        "making": ["make"], "t-shirts": ["t", "shirt"], "classes": ["class"], "bus": [], "doing": [],
    }  # fmt: skip
    reader, plain = Reader(index), Reader(index, stemming=False)
    for text, words in found.items():
        assert reader(text) == [index[word] for word in words], text
        assert plain(text) == []
    assert Reader(index, stop_words={"run"})("Run dog run") == [0]


def test_unknown_words_are_counted_once_a_caption_and_reported_once() -> None:
    target = Captions(VECTORS)
    with pytest.warns(
        UserWarning, match=r"3 of 8 words \(37.5%\) .* 2 different ones, most often: zebra \(2\), yak \(1\)"
    ):
        target.encode([["dog zebra", "zebra cat"], ["a yak", "red ball"]][:1] + [["the yak", "red ball"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.encode([["dog zebra", "zebra cat"], ["dog emu", "the yak"]])
    assert target.reader.unknown == {"zebra": 2, "yak": 1, "emu": 1}
    assert target.reader.report(1).endswith("most often: zebra (2)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Captions(VECTORS).encode([["dog"]])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["dog", "cat"], ["red", "Zebra!"]], "caption 1 of item 1 has no known word: 'Zebra!'"),
        ([["dog"], ["..."]], r"caption 0 of item 1 has no known word: '\.\.\.'"),
        ([["dog"], ["dog " * 65]], "caption 0 of item 1 has 65 known words, more than length=64"),
        ([["dog"], [" "]], "item 1 has no caption"),
        (
            [["dog"], ["dog", "cat"]],
            r"needs texts \[n captions\], as many for each item.* 2 captions for item 1 and 1 for",
        ),
        ([["dog", "cat"], ["dog", None]], r"needs texts \[n captions\].* got None as caption 1 of item 1"),
        ([[1, 2]], r"needs texts \[n captions\]"),
        ([[["dog"]]], r"needs texts \[n captions\]"),
    ],
)
def test_captions_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captions(VECTORS).encode(labels)


def test_options() -> None:
    assert Captions(VECTORS, stop_words=True).encode([["the dog"]])[0, 0, :2].tolist() == [0, -1]
    assert Captions(VECTORS, stop_words=["dog"]).encode([["the dog"]])[0, 0, :2].tolist() == [5, -1]
    assert Captions(VECTORS, length=3).encode(["dog on grass", "cat"]).shape == (2, 1, 3)
    with pytest.raises(ValueError, match="length must be at least 1"):
        Captions(VECTORS, length=0)
    copy = pickle.loads(pickle.dumps(RELAXED))
    assert copy.encode([["red dogs"]]).equal(RELAXED.encode([["red dogs"]]))


def test_the_exact_distance_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    Captions(VECTORS)
    with pytest.raises(ImportError, match=r"needs POT; install beyond_binary\[text\]"):
        Captions(VECTORS, relaxed=False)


def test_a_loss_reads_captions() -> None:
    z = torch.randn(6, 4, requires_grad=True)
    texts = np.array(random_texts(6))
    loss = bb.create_objective("log_ratio", target=RELAXED)(z, texts)
    loss.backward()
    table = RELAXED.distance(RELAXED.encode(texts), RELAXED.encode(texts)).double().numpy()
    expected = bb.create_objective("log_ratio", target=bb.targets.tables.Precomputed(table))(z, torch.arange(6))
    torch.testing.assert_close(loss, expected)


# ---- sentence embeddings


def test_sentences_are_the_best_matching_cosines() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 3, 4)), rng.normal(size=(4, 2, 4))
    a[1, 2], b[3, 0] = 0, 0

    def cosine(x: Any, y: Any) -> float:
        return float(1 - x @ y / math.sqrt((x @ x) * (y @ y)))

    for reduce in ("sum", "mean"):
        y = distances(bb.create_target(f"sentences(reduce={reduce!r})"), a, b)
        for i, j in itertools.product(range(5), range(4)):
            p, q = [x for x in a[i] if x.any()], [x for x in b[j] if x.any()]
            best = [min(cosine(x, y) for y in q) for x in p] + [min(cosine(x, y) for x in p) for y in q]
            assert y[i, j] == pytest.approx(sum(best) / (len(best) if reduce == "mean" else 1), abs=1e-12)
    a[2] = 0
    with pytest.raises(ValueError, match="item 2 has no caption"):
        bb.create_target("sentences").encode(a)
    with pytest.raises(ValueError, match=r"embeddings \[n captions d\], got shape \[3, 4\]"):
        bb.create_target("sentences").encode(a[0])


def test_captions_are_embedded_by_an_open_clip_text_tower() -> None:
    text = open_clip.CLIPTextCfg(context_length=12, width=16, heads=2, layers=1)
    vision = open_clip.CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=8, image_size=16)
    model = open_clip.CLIP(8, vision, text).train()
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    texts = [["a dog", "", "two cats"], ["a dog", "a red ball", " "]]
    z = embed_captions(texts, model, tokenizer, batch=2)
    assert model.training
    assert z.shape == (2, 3, 8)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    assert z[0, 0].equal(z[1, 0])
    torch.testing.assert_close(z[1, 1], model.eval().encode_text(tokenizer(["a red ball"])).detach()[0])
    assert (z[0, 1] == 0).all()
    assert (z[1, 2] == 0).all()
    y = distances(bb.create_target("sentences"), z, z)
    assert y[0, 1] > 0
    assert (y.diagonal() == 0).all()
