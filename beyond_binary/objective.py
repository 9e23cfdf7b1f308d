"""Objectives: a loss, a target, a geometry and a miner put together, with whatever proxies the loss learns."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from . import distributed, softmax, storage
from .blocks import Block, dense, tiled
from .centres import belonging
from .geometry import Geometry, create_geometry
from .keys import Boundary, Memory, Proxies
from .losses import LOSSES, LossFacts, check_fit
from .mining import MINERS
from .points import Points, alike, checked_ids, full_precision, nan_if_nan
from .registry import bind, options_of, parse_spec
from .targets import Target, create_target, innermost
from .targets.algebra import Within
from .targets.sets import MultiLabel
from .targets.vectors import Classes
from .walks import Pairs

TILE = 1 << 19  # pairs in one tile of the block engine


class Objective(nn.Module):
    """A training objective: `objective(embeddings, labels)` is a scalar, ready for backward.

    Build it with `create_objective`. Under a process group, and unless `gather=False`, the keys are the batches of all
    processes, the value is that of one process holding everything, and gradients averaged over processes (as
    DistributedDataParallel does) are that process's gradients; the objective must then be inside the prepared module
    if it learns proxies. Half-precision embeddings are computed with in float32.

    Attributes:
        config: the arguments of `create_objective`, JSON-able, with all options of the loss. `target` and `geometry` are
            None where they were objects instead of specs; proxies' labels are among `learned`.
    """

    config: dict[str, Any]
    step: Tensor

    def __init__(
        self,
        loss: str,
        options: dict[str, Any],
        target: Target,
        geometry: Geometry,
        mining: str | None,
        proxies: Proxies | None,
        boundary: Boundary | None,
        memory: Memory | None,
        gather: bool,
        block: int | None,
        anchors: int | None = None,
    ) -> None:
        super().__init__()
        entry = LOSSES[loss]
        self.loss, self.options, self.target, self.geometry = loss, options, target, geometry
        if (inner := innermost(target)) is not target and isinstance(inner, nn.Module):
            self.inner_target = inner  # so that what it learns is kept, moved and switched with the objective
        self.facts: LossFacts = entry.info["facts"]
        self.proxies, self.boundary, self.memory = proxies, boundary, memory
        self.gather, self.block, self.anchors = gather, block, anchors
        self._function = bind(entry.build, options)
        every = {**options_of(entry.build), **options}
        self._in_place = bind(self.facts.in_place, every) if self.facts.in_place else None
        self._penalty = bind(self.facts.penalty, options) if self.facts.penalty else None
        self._by_proxy = bind(self.facts.by_proxy, every) if self.facts.by_proxy else None
        self._merge = bind(self.facts.merge, options) if self.facts.merge else None
        if "step" in options_of(entry.build):
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._miner = None
        if mining is not None:
            name, positional, keywords = parse_spec(mining)
            if positional:
                raise ValueError(
                    f"mining {mining!r}: give its options by name, for example multi_similarity(epsilon=0.1)"
                )
            MINERS.check_options(name, keywords, fixed=("x", "y", "valid"))
            MINERS.check_values(name, keywords)
            self._miner = functools.partial(MINERS[name].build, **keywords)
            self._miner_reads_width = "dim" in options_of(MINERS[name].build) and "dim" not in keywords

    def extra_repr(self) -> str:
        """What `print(objective)` shows."""
        return f"{self.loss}, {self.options}, target={self.target}, geometry={self.geometry}"

    def forward(
        self,
        embeddings: Tensor | Points,
        labels: Any = None,
        ref_embeddings: Tensor | None = None,
        ref_labels: Any = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, of a batch against references, or of queries against keys.

        Args:
            embeddings: floating [n d], or queries as `Points`.
            labels: what the target encodes, [n ...]; or keys as `Points` when the first argument is `Points`.
            ref_embeddings: references [m d] that become the keys; they are not gathered over processes.
            ref_labels: their labels [m ...].
            ids: identity of each item, int64 [n]; pairs with equal ids never count. Default: all different.
            ref_ids: identities of the references. Default: different from all items.

        Returns:
            A scalar; 0 (with a graph) if no pair is valid.

        Raises:
            ValueError: shapes, labels or references do not fit.
        """
        if self.proxies is not None:
            self.proxies.check_started(self.loss)
        z = embeddings.z if isinstance(embeddings, Points) else embeddings
        with torch.autocast(z.device.type if isinstance(z, Tensor) else "cpu", enabled=False):
            queries, keys = self._points(embeddings, labels, ref_embeddings, ref_labels, ids, ref_ids)
            return self._loss(queries, keys)

    def learned(self) -> dict[str, Tensor]:
        """The state by name, but for the memory: that holds embeddings and labels of items, and fills again by itself."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("memory.")}

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        target: Target | None = None,
        geometry: Geometry | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Objective:
        """The objective that was saved beside an embedder (`save_pretrained(..., objective=)`, runs of the trainer).

        It comes back bit for bit, with an empty memory, in training mode.

        Args:
            id_or_path: a folder; if there is none, a Hub id "user/name".
            target: for an objective that was made with a target object instead of a spec: that target.
            geometry: likewise.
            revision, token, cache_dir: as `Embedder.from_pretrained`.

        Raises:
            FileNotFoundError: neither a folder nor to be had from the Hub.
            PermissionError: the Hub does not take the token, or does not let its account read this.
            ValueError: an embedder without its objective, or without what the objective learned, or a broken folder.
        """
        places = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = storage.find_folder(id_or_path, (storage.CONFIG_FILE, storage.OBJECTIVE_FILE), **places)
        config, tensors = storage.read_objective(folder)
        objects = {"target": target, "geometry": geometry}
        config |= {name: thing for name, thing in objects.items() if thing is not None}
        if missing := [name for name in objects if config[name] is None]:
            again = ", ".join(f"{name}=" for name in missing)
            raise ValueError(f"the objective in {folder} was made with objects instead of specs; pass {again} again")
        if not LOSSES[config["loss"]].info["facts"].needs_proxies:
            config["proxy_init"] = None  # once kept, though there was nothing to start
        options = config.pop("options")
        objective = create_objective(**config, proxy_codes=tensors.get("proxies.code"), **options)
        shapes = [{name: tensor.shape for name, tensor in some.items()} for some in (objective.learned(), tensors)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the tensors in {folder / storage.OBJECTIVE_FILE} do not fit {objective}; save it again")
        objective.load_state_dict({**objective.state_dict(), **tensors}, assign=True)
        return objective

    @torch.no_grad()
    def start_at_means(self, z: Tensor, labels: Any) -> None:
        """Set each proxy to the mean of the L2-normalised embeddings of its class, or of the items whose labels are
        nearest to its own (of label sets: each of its labels); proxies without any stay as they are.

        Where only directions count (cosine), the means get the length of random proxies, sqrt(dim), so that a learning
        rate turns both alike.

        Args:
            z: embeddings of the training set [n d].
            labels: their labels, as the target wants them.
        """
        if self.proxies is None:
            raise ValueError(f"{self.loss} has no proxies")
        code, own = self.target.encode(labels, z), self.proxies.code
        if own is not None:
            item, code = belonging(self.target, code, own.to(code.device))
            z = z[item.to(z.device)]
        turned = getattr(self.geometry, "normalize", False)
        self.proxies.start_at_means(z, code, math.sqrt(z.shape[1]) if turned else None)

    def _points(
        self, embeddings: Any, labels: Any, ref_embeddings: Any, ref_labels: Any, ids: Any, ref_ids: Any
    ) -> tuple[Points, Points | None]:
        if isinstance(embeddings, Points):
            if any(extra is not None for extra in (ref_embeddings, ref_labels, ids, ref_ids)):
                raise ValueError(
                    "expected objective(queries, keys) with Points alone; they hold labels and ids themselves"
                )
            if labels is not None and not isinstance(labels, Points):
                raise ValueError(f"expected keys as Points beside queries as Points, got {type(labels).__name__}")
            return full_precision(embeddings), None if labels is None else full_precision(labels)
        if ref_ids is not None and ref_embeddings is None:
            raise ValueError("ref_ids were given without ref_embeddings")
        if labels is None or (ref_embeddings is None) != (ref_labels is None):
            raise ValueError("expected objective(embeddings, labels) or with ref_embeddings and ref_labels both")
        z = full_precision(embeddings)
        if ids is None:
            start = 0 if self.memory is None else int(self.memory.seen)  # what is remembered is not what comes now
            if self.gather and distributed.world_size() > 1:
                start += sum(distributed.sizes(len(z), z.device)[: distributed.rank()])
            ids = torch.arange(start, start + len(z), device=z.device)
        else:
            ids = checked_ids(ids, z)
        queries = Points(z, self.target.encode(labels, z.detach()).to(z.device), ids)
        if ref_embeddings is None:
            return queries, None
        z = full_precision(ref_embeddings)
        if ref_ids is None:
            top = int(queries.id.max()) + 1 if len(queries) else 0
            ref_ids = torch.arange(top, top + len(z), device=z.device)
        return queries, Points(z, self.target.encode(ref_labels, z.detach()).to(z.device), checked_ids(ref_ids, z))

    def _loss(self, queries: Points, keys: Points | None) -> Tensor:
        if self.proxies is not None:
            if keys is not None:
                raise ValueError(f"the keys of {self.loss!r} are its proxies; it takes no references")
            if not torch.compiler.is_compiling():
                self.proxies.check(queries)
        if self.memory is not None and keys is not None:
            raise ValueError(
                "an objective with a memory compares a batch with itself and what came before; leave out memory= "
                "or the references (ClipCriterion: across=False)"
            )
        together = self.gather and keys is None and distributed.world_size() > 1
        counts = distributed.sizes(len(queries), queries.z.device) if together else []
        batch_keys = self.facts.keys == "item"
        whole = together and (batch_keys or self.facts.form not in ("rows", "softmax") or self.memory is not None)
        whole = whole or (together and self._penalty is not None)
        everything = distributed.gather(queries, counts) if whole else queries
        share = distributed.world_size() if together else 1
        keys = self._keys(everything) if keys is None else keys
        if self.proxies is None and keys.z.shape[1] != queries.z.shape[1]:
            raise ValueError(f"queries have {queries.z.shape[1]} dimensions but references {keys.z.shape[1]}")
        proxies = None if self.proxies is None else self.proxies.points()

        if self.facts.form == "softmax":
            loss: Tensor = self._softmax(queries, share)
        elif self.facts.form == "pairs":
            loss = self._pairs(everything, keys if proxies is None else proxies)
        elif self.facts.rows == "proxy":
            assert proxies is not None
            loss = self._of_proxies(proxies, keys, share)
        else:
            rows = queries if self.anchors is None else self._first(queries, counts)
            loss = self._rows(rows, keys if proxies is None else proxies, share)
        if self._penalty is not None:
            if proxies is None:
                loss = loss + self._penalty(self.geometry.prepare(everything.z), None)
            else:
                loss = loss + self._penalty(*alike(everything.z, proxies.z))
        if self.memory is not None and self.training:
            self.memory.push(everything)
        return loss

    def _keys(self, everything: Points) -> Points:
        """The batch of all processes, and before it what is remembered."""
        kept = None if self.memory is None else self.memory.points()
        if kept is None:
            return everything
        return Points.cat(everything, Points(kept.z.to(everything.z), kept.code, kept.id))

    def _first(self, queries: Points, counts: list[int]) -> Points:
        """Those of this process's items that are anchors: the first so many of all processes."""
        assert self.anchors is not None
        before = sum(counts[: distributed.rank()]) if counts else 0
        return queries[: max(self.anchors - before, 0)]

    def _mining(self, z: Tensor) -> Callable[..., Tensor] | None:
        """The miner, told the embeddings' width if it reads that."""
        if self._miner is None or not self._miner_reads_width:
            return self._miner
        return functools.partial(self._miner, dim=z.shape[1])

    def _tile(self, keys: int) -> int | None:
        """Rows of a tile, or None where the plain form is wanted."""
        if self.block is None or torch.compiler.is_compiling():
            return None
        return max(1, min(self.block, TILE // max(keys, 1)))

    def _pairs(self, queries: Points, keys: Points) -> Tensor:
        zq, zk = alike(queries.z, keys.z)
        q = Points(zq, queries.code, queries.id)
        k = q if keys is queries else Points(zk, keys.code, keys.id, keys.parts)
        if len(q) == 0 or len(k) == 0:
            return zq.sum() * 0 + zk.sum() * 0
        loss: Tensor = self._function(Pairs.of(q, k, self.geometry, self.target, self._mining(zq), self._tile(len(k))))
        return nan_if_nan(loss, zq, zk)

    def _softmax(self, queries: Points, share: int) -> Tensor:
        assert self.proxies is not None
        function = self._function
        if hasattr(self, "step"):
            if self.training:
                self.step += 1
            function = functools.partial(function, step=self.step.clone())
        loss = softmax.Softmax(
            function, self._merge, self.proxies.centers, self.facts.others_only, self.facts.per_row == "norm", share
        )
        z, w = alike(queries.z, self.proxies.weight)
        if self.block is None or torch.compiler.is_compiling() or self.geometry not in softmax.TILED:
            return softmax.dense(loss, self.geometry, z, w, queries.code)
        rows = max(1, min(2 * self.block, len(z)))
        return softmax.tiled(loss, self.geometry, z, w, queries.code, rows, max(1, TILE // rows // loss.centers))

    def _of_proxies(self, proxies: Points, items: Points, share: int) -> Tensor:
        """A loss whose rows are proxies; each process walks some of them."""
        mine = distributed.share(len(proxies)) if share > 1 else slice(0, len(proxies))

        def plain(z: Tensor, w: Tensor) -> Tensor:
            rows, keys = Points(w, proxies.code, proxies.id), Points(z, items.code, items.id)
            return self._rows(rows[mine] if share > 1 else rows, keys, share)

        z, w = alike(items.z, proxies.z)
        classes = self._tile(len(z))
        numbered = self.proxies is not None and self.proxies.code is None
        if self._by_proxy is None or classes is None or self.geometry not in softmax.TILED or not numbered:
            return plain(z, w)
        return softmax.by_proxies(self._by_proxy, plain, self.geometry, z, w, items.code, mine, classes, share)

    def _rows(self, queries: Points, keys: Points, share: int) -> Tensor:
        rows = self._tile(len(keys))
        block = Block(
            self.geometry, self.target, self._mining(queries.z), queries.code, keys.code, queries.id, keys.id,
            self._function, self._in_place, share, rows,
        )  # fmt: skip
        zq, zk = alike(queries.z, keys.z)
        row = None
        if self.facts.per_row == "norm":
            row = torch.linalg.vector_norm(zq, dim=1)
        elif self.boundary is not None:
            row = self.boundary(queries).to(zq.dtype)
        q = self.geometry.prepare(zq)
        k = q if keys.z is queries.z else keys.each(lambda z: self.geometry.prepare(z.to(zk)))
        if len(keys) == 0:
            return q.sum() * 0 + k.sum() * 0
        loss = dense(block, q, k, row) if rows is None else tiled(block, q, k, rows, row)
        return nan_if_nan(loss, q, k)


def create_objective(
    loss: str,
    *,
    target: str | Target = "classes",
    geometry: str | Geometry | None = None,
    mining: str | None = None,
    num_classes: int | None = None,
    dim: int | None = None,
    proxy_init: str | None = None,
    proxy_codes: Tensor | None = None,
    memory: int = 0,
    anchors: int | None = None,
    gather: bool = True,
    block: int | None = 1024,
    **options: Any,
) -> Objective:
    """Put a loss and a target together.

    Args:
        loss: a registered name, see `list_losses()`.
        target: what similar means, a spec such as `classes` or `pose(root=(2, 3))`.
        geometry: how embeddings are compared; default: the one of the loss's paper.
        mining: spec of a miner such as `multi_similarity(epsilon=0.1)`; default: all valid pairs.
        num_classes: number of classes, for losses with proxies.
        dim: width of the embeddings, for losses with proxies.
        proxy_init: `random` or `class_mean` (see `Proxies`); default: that of the loss, `random` for most.
        proxy_codes: labels of the proxies [c ...] as the target encodes them, for losses that take proxies with labels of
            any kind: `label_centres(target, code, c)` for continuous labels, `torch.eye(c)` for sets of c labels. None:
            one proxy per class.
        memory: how many embeddings of earlier batches join the batch as keys, without gradient, once there are so many
            (0: none).
        anchors: rows of the loss are the first so many items of the batch (of all processes together) alone, while all are
            keys: 1 is the batch of the log-ratio paper. None: every item is a row. For losses whose rows are items of
            the batch.
        gather: under a process group, compare with the batches of all processes (exact gradients).
        block: most rows in a tile of the block engine; None: the plain dense form.
        **options: the loss's own options, see its documentation.

    Raises:
        ValueError: unknown name or option, a geometry of the wrong kind, a target that the loss cannot read, or missing
            num_classes or dim. The message names the way out.
    """
    facts: LossFacts = LOSSES[loss].info["facts"]
    fixed = ("x", "y", "valid", "row", "pairs", "z", "code", "proxies", "num_classes", "s", "step")
    LOSSES.check_options(loss, options, fixed=fixed)
    LOSSES.check_values(loss, options)
    facts.check(loss, options)
    made = create_target(target, num_classes=num_classes, dim=dim)
    spec = target if isinstance(target, str) else type(target).__name__
    weighted = facts.weighted_by is not None and options.get(facts.weighted_by) is not None
    check_fit(
        f"{loss} with {facts.weighted_by}" if weighted else loss,
        facts.reads_with(options),
        spec,
        made.gives,
        facts.weighted_by,
    )
    if mining is not None and (reads := MINERS[parse_spec(mining)[0]].info.get("reads", "same")) != "anything":
        check_fit(f"mining {mining!r}", reads, spec, made.gives)
    space = create_geometry(geometry or facts.geometry)
    if space.kind != facts.x:
        raise ValueError(
            f"{loss} reads a {facts.x}, but geometry {geometry!r} gives a {space.kind}; its paper's is {facts.geometry!r}"
        )
    if facts.geometry_only and space != create_geometry(facts.geometry):
        raise ValueError(f"{loss} holds for geometry {facts.geometry!r} alone, got {geometry!r}")
    sets = facts.label_sets and isinstance(made, Within) and isinstance(made.target, MultiLabel)
    if facts.classes_only and not isinstance(made, Classes) and not sets:
        raise ValueError(f"{loss} averages over classes and takes target 'classes' alone, got {target!r}")
    proxies = None
    if facts.needs_proxies:
        if proxy_codes is not None and not facts.any_proxies:
            raise ValueError(f"{loss} learns one proxy per class and takes no proxy_codes")
        if proxy_codes is not None and isinstance(made, Classes):
            raise ValueError(
                f"with target {target!r} {loss} has the proxy of each class and takes no proxy_codes; give num_classes="
            )
        if proxy_codes is None and not isinstance(made, Classes):
            way_out = "; for other labels give proxy_codes=, such as label_centres(target, code, 100) (trainer: objective.num_proxies)"
            raise ValueError(
                f"{loss} learns one proxy per class and takes target 'classes' alone, got {target!r}"
                f"{way_out if facts.any_proxies else ''}"
            )
        count = num_classes if proxy_codes is None else len(proxy_codes)
        if count is None or dim is None:
            raise ValueError(f"{loss} learns one proxy per class: give num_classes= and dim= (the embedder's width)")
        centers = options_of(facts.merge).get("centers", 1) if facts.merge else 1
        proxies = Proxies(count, dim, proxy_init or facts.proxy_init, options.get("centers", centers), proxy_codes)  # type: ignore[arg-type]
    elif proxy_codes is not None:
        raise ValueError(f"{loss} has no proxies and takes no proxy_codes")
    elif proxy_init not in (None, "random"):
        raise ValueError(f"{loss} has no proxies and takes no proxy_init, got {proxy_init!r}")
    boundary = None
    if facts.per_row == "beta":
        own = {name: value for name, value in options.items() if name in options_of(Boundary)}
        if own.get("beta_per_class") and not isinstance(made, Classes):
            raise ValueError(f"beta_per_class needs target 'classes', got {target!r}")
        boundary = Boundary(num_classes=num_classes, **own)
    if memory and (facts.keys == "proxy" or memory < 0):
        raise ValueError(f"{loss} compares with proxies and takes no memory" if memory > 0 else "memory is negative")
    if memory and mining is not None and facts.both_ends:
        raise ValueError(f"{loss} reads pairs from both ends and takes a memory or mining, not both; leave one out")
    if mining is not None and facts.needs_proxies:
        raise ValueError(f"{loss} takes no mining: it compares with proxies")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1 row (or None for the dense form), got {block}")
    if anchors is not None and (facts.form != "rows" or facts.rows == "proxy" or facts.keys == "proxy" or anchors < 1):
        raise ValueError(
            f"anchors must be at least 1, got {anchors}"
            if anchors < 1
            else f"{loss} is no mean over items compared with the batch and takes no anchors; leave anchors out"
        )
    held = Memory(memory) if memory else None
    objective = Objective(loss, options, made, space, mining, proxies, boundary, held, gather, block, anchors)
    geometry = facts.geometry if geometry is None else geometry
    known = {name: value for part in (*facts.parts, LOSSES[loss].build) for name, value in options_of(part).items()}
    objective.config = {
        "loss": loss,
        "target": target if isinstance(target, str) else None,
        "geometry": geometry if isinstance(geometry, str) else None,
        "mining": mining,
        "num_classes": num_classes,
        "dim": dim,
        "proxy_init": proxy_init or facts.proxy_init,
        "memory": memory,
        "gather": gather,
        "block": block,
        "anchors": anchors,
        "options": {n: v for n, v in {**known, **options}.items() if n not in fixed and v is not Parameter.empty},
    }
    return objective


def try_out(objective: Objective, labels: Any, ids: Any, dim: int) -> None:
    """Raise a ValueError if the loss cannot be computed on random embeddings [n dim] of the first items."""
    z = torch.randn(min(len(ids), 16), dim, generator=torch.Generator().manual_seed(0))
    try:
        with distributed.disabled(), torch.no_grad():
            loss = float(objective.eval()(z, labels[: len(z)], ids=ids[: len(z)]))
    except TypeError as error:
        raise ValueError(f"objective.options do not fit: {error}") from error
    objective.train()
    if not math.isfinite(loss):
        raise ValueError(f"the loss of random embeddings is {loss}; check objective.options {objective.options}")
