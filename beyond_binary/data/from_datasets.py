"""Sets of the `datasets` library as rows: from the Hub, whole or streamed, and from folders that it wrote."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from .config import DataConfig
from .readers import IMAGE_COLUMNS, EncodedImages, Rows, decode, image_column


def load_hub(config: DataConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the splits of a set on the Hub (or in its local cache) with `datasets`, and say what exactly they are.

    Returns the splits by name, and the origin: set, config, splits, the revision that was asked for and the commit that
    this was. With `config.streaming` no file is downloaded as a whole; see `collect`.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `read_rows`, with the way out.
    """
    from datasets import load_dataset_builder

    from ..hub import http_status, patiently

    name = config.source.removeprefix("hub:")

    def load() -> tuple[Any, dict[str, Any]]:
        builder = load_dataset_builder(name, config.config_name, revision=config.revision)
        if config.streaming:
            return builder, collect(_asked_splits(builder.as_streaming_dataset(), config), config)
        builder.download_and_prepare()
        return builder, _asked_splits(builder.as_dataset(), config)

    try:
        builder, parts = patiently(load)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the Hub set {name!r} and there is no copy in the local cache ({error}); check the "
            f"network, or load it where there is one, write it with save_to_disk and give that folder as "
            f"data.source"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no set {name!r} on the Hub, or no right to read it: {error}") from error
    except RuntimeError as error:
        if "script" not in str(error).lower():
            raise
        raise ValueError(
            f"the Hub set {name!r} is loaded by a script of its own, which `datasets` no longer runs ({error}); set "
            f"data.revision to refs/convert/parquet if the set has that branch (its page on the Hub lists it), choose "
            f"another upload of the set, or convert it once where the script is trusted: pip install datasets==3.6.0 and "
            f"datasets-cli convert_to_parquet {name} --trust_remote_code"
        ) from error
    except ValueError as error:
        raise ValueError(f"cannot load {name!r} (see data.config_name and data.revision): {error}") from error
    except Exception as error:
        if (status := http_status(error)) is None:
            raise
        told = " ".join(str(error).split())
        if status in (401, 403):
            raise PermissionError(
                f"the Hub does not let this account read {name!r} ({told}); log in with `hf auth login`, or set HF_TOKEN to "
                "a token with the right to read it"
            ) from error
        raise ConnectionError(f"the Hub did not give the set {name!r} ({told}); try again later") from error
    cached = not str(builder.base_path).startswith(
        "hf://"
    )  # `datasets` falls back to any copy it has, whatever the error
    if cached and config.revision not in (None, "main", builder.hash):
        raise ValueError(
            f"the Hub did not give revision {config.revision!r} of {name!r}, and the local cache has commit {builder.hash}; "
            f"check the name of the revision and the network, or set data.revision to that commit"
        )
    origin = {"set": name, "config": builder.config.name, "splits": list(parts)}
    return parts, {**origin, "revision": config.revision or "main", "commit": builder.hash}


def _asked_splits(loaded: Any, config: DataConfig) -> dict[str, Any]:
    """The splits that the config names, where it goes by them; else all. A set without splits has the name ""."""
    parts: dict[str, Any] = dict(loaded) if isinstance(loaded, dict) else {"": loaded}
    asked = [split for split in (config.train_split, config.query_split, config.gallery_split) if split]
    by_name = config.splitting == "given" and config.role is None and config.split in (None, "split")
    return {split: parts[split] for split in dict.fromkeys(asked)} if by_name and set(asked) <= set(parts) else parts


def collect(parts: dict[str, Any], config: DataConfig) -> dict[str, Any]:
    """Streamed splits as sets in memory: rows come one after another, and images are kept no larger than `config.size`.

    Training draws its batches from all items and evaluation ranks all of them, so every row is needed; what streaming
    saves is the disk, and the memory of full-sized images. Images that are shrunk are kept as PNG, without loss. With
    splitting "rows", in file order, reading ends with the last row that is wanted.
    """
    in_order = config.splitting == "rows" and not config.shuffle
    left = sum(config.rows or ()) if in_order else None
    kept = {}
    for split, part in parts.items():
        if left != 0:
            kept[split] = _collected(part, config, left)
            left = None if left is None else left - len(kept[split])
    return kept


def _collected(part: Any, config: DataConfig, most: int | None) -> Any:
    """The first `most` rows of a streamed split (all: None) with one image column."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features
    from datasets.table import InMemoryTable

    tables: list[Any] = []
    known, count = part.features, 0
    for table in part.with_format("arrow").iter(batch_size=32):
        known = known or Features.from_arrow_schema(table.schema)
        image, pictures = _picture_columns(known, config)
        kept = table.slice(0, None if most is None else most - count)
        kept = kept.drop_columns([name for name in pictures if name != image])
        if image in pictures:
            cells = [_small(cell, config.size) for cell in kept[image].to_pylist()]
            place = kept.column_names.index(image)
            kept = kept.set_column(place, image, pa.array(cells, known[image].pa_type))
        tables.append(kept)
        count += len(kept)
        if count == most:
            break
    if not tables:
        raise ValueError(f"a split of {config.source!r} has no rows")
    whole = pa.concat_tables(tables, promote_options="permissive")  # undeclared types are those of each batch
    if part.features is None:
        known = Features.from_arrow_schema(whole.schema)
    features = Features({name: known[name] for name in whole.column_names})
    return Dataset(InMemoryTable(whole), info=DatasetInfo(features=features))


def _small(cell: dict[str, Any] | None, size: int | None) -> dict[str, Any] | None:
    """An image {"bytes", "path"} with its bytes, a PNG of shorter side `size` if it is larger; unreadable ones as they are."""
    import fsspec

    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        return cell
    content = cell["bytes"]
    if content is None:
        with fsspec.open(cell["path"], "rb") as file:
            content = file.read()
    try:
        with Image.open(io.BytesIO(content)) as image:
            large = size is not None and min(image.size) > size
        if large:
            buffer = io.BytesIO()
            decode(io.BytesIO(content), size).save(buffer, "PNG", compress_level=1)
            content = buffer.getvalue()
    except Exception:
        pass  # `loading.check_images` says of all images whether they can be read
    return {"bytes": content, "path": cell["path"]}


def _picture_columns(features: Any, config: DataConfig) -> tuple[str, list[str]]:
    """The column of the images, and all columns that `datasets` calls images."""
    from datasets import Image

    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    usual = sorted(pictures, key=lambda name: name not in IMAGE_COLUMNS)
    return image_column(list(features), config.image or next(iter(usual), None)), pictures


def dataset_rows(loaded: Any, config: DataConfig) -> Rows:
    """Rows of a `Dataset` or of the splits of a `DatasetDict` (joined, with a column "split")."""
    from datasets import ClassLabel, Image, concatenate_datasets

    parts = _asked_splits(loaded, config)
    whole = concatenate_datasets(list(parts.values())) if len(parts) > 1 else next(iter(parts.values()))
    image, pictures = _picture_columns(whole.features, config)
    encoded = whole.cast_column(image, Image(decode=False)) if image in pictures else whole
    table = with_fields(whole.remove_columns(list({image, *pictures})).with_format("arrow")[:])
    if "split" not in table.column_names and "" not in parts:
        table = table.append_column("split", [[split for split in parts for _ in range(len(parts[split]))]])
    names = [f"{split or 'row'}[{row}]" for split, part in parts.items() for row in range(len(part))]
    features = {n: list(f.names) for n, f in whole.features.items() if isinstance(f, ClassLabel) and f.names}
    return Rows(EncodedImages(encoded.select_columns([image])[image], config.size), names, table, features)


def with_fields(table: Any) -> Any:
    """The table with a column "sentences.raw" for each field of a column of structs, or of lists of structs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_struct(column.type):
            for field_ in column.type:
                table = table.append_column(f"{name}.{field_.name}", pc.struct_field(column, field_.name))
        elif pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            for field_ in column.type.value_type:
                values = pc.struct_field(column.values, field_.name)
                lost = column.is_null() if column.null_count else None
                fields = pa.ListArray.from_arrays(column.offsets, values, mask=lost)
                table = table.append_column(f"{name}.{field_.name}", fields)
    return table
