"""Tiny sets in the files of their authors, as the real archives have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from beyond_binary.data.originals.poses import JOINTS, MPII


def structs(*rows: dict[str, Any]) -> np.ndarray:
    """A MATLAB struct array; fields that a struct lacks are []."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in names])
    for i, row in enumerate(rows):
        for name in names:
            array[0, i][name] = row.get(name, np.zeros((0, 0)))
    return array


def picture(file: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, "BMP")  # lossless under any name
    return pixels


def write_text(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


# ---------------------------------------------------------------- poses


def person(x: float, y: float, scale: float = 0.2, joints: int = 16, hidden: int | None = None) -> dict[str, Any]:
    points = [
        {"x": x + j, "y": y - j, "id": j, "is_visible": np.zeros((0, 0)) if j > 8 else j != hidden}
        for j in range(joints)
    ]
    return {
        "x1": 1, "scale": scale, "objpos": structs({"x": x, "y": y}), "annopoints": structs({"point": structs(*points)})
    }  # fmt: skip


def write_mpii(root: Path, images: list[dict[str, Any]], train: list[int], folder: str = "") -> Path:
    annotations = [
        {
            "image": structs({"name": f"{i:03d}.jpg"}),
            "annorect": image.get("people", np.zeros((0, 0))),
            **image.get("more", {}),
        }
        for i, image in enumerate(images)
    ]
    (root / folder).mkdir(parents=True, exist_ok=True)
    savemat(
        root / folder / MPII, {"RELEASE": structs({"annolist": structs(*annotations), "img_train": np.array([train])})}
    )
    for i in range(len(images)):
        picture(root / "images" / f"{i:03d}.jpg", (60, 48), i)
    return root


def plain_mpii(root: Path, count: int = 9) -> Path:
    """Images of one person each, three to a video."""
    images = [{"people": structs(person(25, 20)), "more": {"vididx": i // 3 + 1}} for i in range(count)]
    return write_mpii(root, images, [1] * count)


def sample(i: int, *people: list[list[float]], tag: str = "train", **more: Any) -> dict[str, Any]:
    """An image of 60 x 48 pixels as FiftyOne 1.22 exports it; people are 16 places in pixels, NaN where there is none."""
    poses = [
        {
            "_id": {"$oid": f"{i:024x}"}, "_cls": "Keypoint", "attributes": {}, "tags": [], "confidence": None,
            "points": [[{"$numberDouble": "NaN"}] * 2 if x != x else [x / 60, y / 48] for x, y in person_],
            "visible": [True, False, *[None] * 14], "joints_id": list(JOINTS),
        }
        for person_ in people
    ]  # fmt: skip
    return {
        "_id": {"$oid": f"{i:024x}"}, "filepath": f"data/data_0/{i:03d}.jpg", "tags": [tag], "_media_type": "image",
        "scale": {"$binary": {"base64": "eJyb7Bfq", "subType": "00"}}, "rectangle_id": [1], "frame_sec": 3,
        "annopoints": {"_cls": "Keypoints", "keypoints": poses},
        "metadata": {"_cls": "ImageMetadata", "mime_type": "image/jpeg", "width": 60, "height": 48, "num_channels": 3},
    } | more  # fmt: skip


def upright(x: float, y: float) -> list[list[float]]:
    """Sixteen joints in a box 15 wide and 30 high, with its corner at x, y."""
    return [[x + j, y + 2 * j] for j in range(16)]


def write_samples(root: Path, *samples: dict[str, Any]) -> Path:
    """The files of a set that FiftyOne exported."""
    for i, made in enumerate(samples):
        picture(root / made["filepath"], (60, 48), i)
    (root / "samples.json").write_text(json.dumps({"samples": samples}))
    return root


# ---------------------------------------------------------------- rooms

ROOM = np.array([[9, 9, 9, 9], [4, 4, 7, 7], [4, 4, 7, 7], [2, 2, 2, 2]])  # ceiling, two walls, floor by any numbers


def write_lsun(root: Path, kinds: Sequence[int] = (5, 5, 5, 5), tests: int = 2, png: bool = False) -> Path:
    parts = {"training": range(len(kinds) - tests), "validation": range(len(kinds) - tests, len(kinds))}
    root.mkdir(parents=True, exist_ok=True)
    for part, numbers in parts.items():
        rooms = [
            {"image": f"room{i}", "scene": "den", "type": kinds[i], "point": np.zeros((6, 2)), "resolution": [[8, 8]]}
            for i in numbers
        ]
        savemat(root / f"{part}.mat", {part: structs(*rooms)})
    (root / "layout_seg").mkdir()
    for i in range(len(kinds)):
        picture(root / "images" / f"room{i}.jpg", (12, 10), i)
        big = np.kron(ROOM, np.ones((2, 3), dtype=np.uint8)).astype(np.uint8)
        if png:
            Image.fromarray(big).save(root / "layout_seg" / f"room{i}.png")
        else:
            savemat(root / "layout_seg" / f"room{i}.mat", {"layout": big.astype(float)})
    return root


# ---------------------------------------------------------------- captions


def write_karpathy(
    root: Path, splits: str, folder: bool = True, sentences: int = 5, images: str = "", name: str = "dataset_coco.json"
) -> Path:
    names = {"t": "train", "r": "restval", "v": "val", "e": "test"}
    listed = []
    for i, split in enumerate(splits):
        place = {"filepath": "train2014"} if folder else {}
        picture(root / images / place.get("filepath", "") / f"{i}.jpg", (8, 6), i)
        texts = [{"raw": f"a dog\n number {i}  line {s}\n", "tokens": ["a"], "sentid": s} for s in range(sentences)]
        listed.append({**place, "filename": f"{i}.jpg", "split": names[split], "sentences": texts, "imgid": i})
    return write_text(root / name, json.dumps({"images": listed, "dataset": "coco"}))


# ---------------------------------------------------------------- classes


def write_cub(root: Path, classes: Sequence[int] = (2, 1, 3, 4, 1), names: int = 4) -> Path:
    """Images of classes from 1 on; the lists are in another order than the images' numbers."""
    folders = [f"{c:03d}.Bird_{c}" for c in range(1, names + 1)]
    files = [f"{folders[c - 1]}/Bird_{c}_{i:04d}_{7 * i}.jpg" for i, c in enumerate(classes)]
    number = range(1, len(classes) + 1)
    write_text(root / "images.txt", *(f"{i} {file}" for i, file in zip(number, files, strict=True)))
    write_text(
        root / "image_class_labels.txt", *(f"{i} {c}" for i, c in reversed([*zip(number, classes, strict=True)]))
    )
    write_text(root / "classes.txt", *(f"{c} {folder}" for c, folder in enumerate(folders, 1)))
    write_text(root / "bounding_boxes.txt", *(f"{i} {float(i)} 2.0 6.0 3.0" for i in number))
    write_text(root / "train_test_split.txt", *(f"{i} {i % 2}" for i in number))
    for i, file in enumerate(files):
        picture(root / "images" / file, (20, 12), i)
    return root


CAR_NAMES = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "Acura RL Sedan 2012", "Volvo 240 1993"]


def write_cars(root: Path, form: str, classes: Sequence[int] = (1, 3, 2, 4, 2), tests: int = 2) -> Path:
    """Cars196 as "joined" (cars_annos.mat), "devkit" (two files with labels) or "csv" (the copy on Kaggle)."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "devkit").mkdir(exist_ok=True)
    names, train = np.array([CAR_NAMES], dtype=object), len(classes) - tests
    boxes = [{"bbox_x1": i + 1, "bbox_y1": 2, "bbox_x2": i + 7, "bbox_y2": 5} for i in range(len(classes))]
    files = [f"{i + 1:06d}.jpg" for i in range(len(classes))]
    part = ["train" if i < train else "test" for i in range(len(classes))]
    if form == "joined":
        files = [f"car_ims/{file}" for file in files]
        entries = [
            {"relative_im_path": f, **b, "class": c, "test": int(p == "test")}
            for f, b, c, p in zip(files, boxes, classes, part, strict=True)
        ]
        savemat(root / "cars_annos.mat", {"annotations": structs(*entries), "class_names": names})
    elif form == "devkit":
        entries = [{**b, "class": c, "fname": f} for f, b, c in zip(files, boxes, classes, strict=True)]
        savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
        savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": structs(*entries[:train])})
        savemat(root / "cars_test_annos_withlabels.mat", {"annotations": structs(*entries[train:])})
        files = [f"cars_{p}/{f}" for p, f in zip(part, files, strict=True)]
    else:
        write_text(root / "names.csv", *CAR_NAMES)
        lines = [f"{f},{','.join(map(str, b.values()))},{c}" for f, b, c in zip(files, boxes, classes, strict=True)]
        write_text(root / "anno_train.csv", *lines[:train])
        write_text(root / "anno_test.csv", *lines[train:])
        folders = [CAR_NAMES[(c - 1) % 4].replace("/", "-") for c in classes]
        files = [f"car_data/car_data/{p}/{d}/{f}" for p, d, f in zip(part, folders, files, strict=True)]
    for i, file in enumerate(files):
        picture(root / file, (20, 12), i)
    return root


def write_sop(root: Path) -> Path:
    """Two products to train and one to test."""
    header = "image_id class_id super_class_id path"
    train = ["1 1 1 bicycle_final/11_0.JPG", "2 1 1 bicycle_final/11_1.JPG", "3 2 12 toaster_final/12_0.JPG"]
    test = ["4 3 1 bicycle_final/13_0.JPG", "5 3 1 bicycle_final/13_1.JPG"]
    write_text(root / "Ebay_train.txt", header, *train)
    write_text(root / "Ebay_test.txt", header, *test)
    for i, line in enumerate([*train, *test]):
        picture(root / line.split()[3], (8, 6), i)
    return root


def write_inshop(root: Path, place: str = "", folder: str = "img") -> Path:
    """Two items to train, two to search; the columns are padded with blanks as in the original."""
    rows = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "train"),
        ("img/WOMEN/Tees/id_00000007/01_1_front.jpg", "id_00000007", "query"),
        ("img/WOMEN/Tees/id_00000007/01_2_side.jpg", "id_00000007", "gallery"),
        ("img/MEN/Shorts/id_00000009/03_4_full.jpg", "id_00000009", "gallery"),
    ]
    lines = [f"{name:<70}{item}  {status} " for name, item, status in rows]
    write_text(
        root / "Eval" / "list_eval_partition.txt", str(len(rows)), "image_name item_id evaluation_status", *lines
    )
    for i, (name, _, _) in enumerate(rows):
        picture(root / place / folder / name.removeprefix("img/"), (8, 6), i)
    return root


def write_inaturalist(root: Path, lists: str = "Inat_dataset_splits") -> Path:
    """Three species to train and two to test, in the lists of Smooth-AP and in the JSON files."""
    files = [f"train_val2018/{kind}/{number}/{i}a.jpg" for i, (kind, number) in enumerate(
        [("Aves", 2761), ("Aves", 2761), ("Plantae", 7477), ("Aves", 3000), ("Fungi", 12), ("Fungi", 12), ("Aves", 9)]
    )]  # fmt: skip
    write_text(root / lists / "Inaturalist_train_set1.txt", *files[:4])
    write_text(root / lists / "Inaturalist_test_set1.txt", *files[4:])
    for part, chosen in (("train", files[:6]), ("val", files[6:])):
        write_text(root / f"{part}2018.json", json.dumps({
            "images": [{"id": 10 * i, "file_name": file, "width": 8} for i, file in enumerate(chosen)],
            "annotations": [
                {"id": i, "image_id": 10 * i, "category_id": int(file.split("/")[2])}
                for i, file in reversed([*enumerate(chosen)])
            ],
            "categories": [{"id": number, "name": "x"} for number in (9, 12, 2761, 3000, 7477)],
        }))  # fmt: skip
    for i, file in enumerate(files):
        picture(root / file, (8, 6), i)
    return root


FOLDS = [[("Ann_A", 2), ("Bo", 1)], [("Cy", 3)], [("Di_D", 1), ("Ed", 2)]]


def write_lfw(root: Path, folder: str = "lfw", each: int = 1) -> Path:
    """Three folds of people, and in pairs.txt `each` genuine and impostor pairs of each."""
    write_text(
        root / "people.txt",
        str(len(FOLDS)),
        *(line for fold in FOLDS for line in [str(len(fold)), *(f"{name}\t{count}" for name, count in fold)]),
    )
    genuine = ["Ann_A\t1\t2", "Cy\t1\t3", "Ed\t1\t2"]
    impostors = ["Ann_A\t2\tBo\t1", "Cy\t2\tEd\t1", "Di_D\t1\tEd\t2"]
    pairs = [line for g, i in zip(genuine, impostors, strict=True) for line in [*[g] * each, *[i] * each]]
    write_text(root / "pairs.txt", f"{len(FOLDS)}\t{each}", *pairs)
    for seed, (name, i) in enumerate((n, i) for fold in FOLDS for n, count in fold for i in range(1, count + 1)):
        picture(root / folder / name / f"{name}_{i:04d}.jpg", (8, 6), seed)
    return root
