"""Publishing on the Hugging Face Hub: what of an embedder or a run is sent, and the one commit that sends it."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeVar

import yaml

from . import storage
from .card import Record, training_curves, write_card
from .runs import Run, to_json, with_nan

Result = TypeVar("Result")
Files = dict[str, Path | bytes]
"""What is sent: name in the repository -> a file here, or the content itself."""

CARD, CURVES, METRICS, SETTINGS = "README.md", "curves.png", "metrics.json", "config.yaml"
REPORT, GALLERY = "report.html", "gallery.png"
PATHS = ("source", "weights", "table", "label_file", "cache", "distances")
"""Settings that are local paths unless they say otherwise."""
WAITS = (2.0, 8.0)
"""Seconds before a failed push or download is tried again; the Hub's client also repeats most requests by itself."""
SILENCE = 60.0
"""Seconds without an answer after which a request of our recipes has failed."""


def push(
    files: Mapping[str, Path | bytes],
    hub_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    repo_type: Literal["model", "dataset"] = "model",
) -> str:
    """Send files to a repository in one commit and return the address of that commit.

    The repository and the branch are made where they are missing. Files of an earlier embedder or run (in a data set:
    parquet files below data/) that are not among `files` are removed in the same commit; others stay. After an error the
    branch is as it was (a repository that was missing may then exist, empty). Where others push meanwhile, it starts again
    from what they left.

    Args:
        files: name in the repository -> file or content.
        hub_id: "user/name".
        private: make a new repository private; None leaves that to the account's settings.
        token: access token with write rights; None takes that of `HF_TOKEN` or `hf auth login`.
        revision: branch, by default main.
        commit_message: the commit's title.
        repo_type: what the repository is for.

    Raises:
        PermissionError: no token, a wrong one, or one without write rights.
        ConnectionError: the Hub cannot be reached or keeps failing; what was uploaded is not sent again next time.
        ValueError: a name that cannot be, `private` for a repository that is public, or a refusal of the Hub.
        RuntimeError: an upload to the Hub's storage (xet) failed in its own library.
    """
    check_hub_id(hub_id)
    check_token(token if token is not None else _own_token())
    try:
        return patiently(
            lambda: _push_once(files, hub_id, private, token, revision, commit_message, repo_type), silent=True
        )
    except Exception as error:
        status = http_status(error)
        if status is None:
            raise
        raise _explained(error, status, hub_id) from error


def limit_silence(seconds: float | None = None) -> None:
    """Let no request to the Hub wait longer than this (default: `SILENCE`) for a connection or for the next bytes.

    The Hub's client waits for ever where no limit is given, and is one for the whole process: this changes it for all who
    use it, so it is for programs (our recipes call it), not for libraries. Shorter limits of single requests stay.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    limit = SILENCE if seconds is None else seconds

    def bound(request: Any) -> None:
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            kind: given.get(kind) or limit for kind in ("connect", "read", "write", "pool")
        }

    def factory() -> Any:
        client = default_client_factory()
        client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], bound]}
        return client

    set_client_factory(factory)


def patiently(attempt: Callable[[], Result], silent: bool = False) -> Result:
    """What `attempt` returns, tried again after `WAITS` where the Hub failed, cut an answer, or (`silent`) gave none."""
    for wait in WAITS:
        try:
            return attempt()
        except Exception as error:
            status = http_status(error)
            if status is None or not _may_pass(status) or not (status or silent or _was_cut(error)):
                raise
            time.sleep(wait)
    return attempt()


def _may_pass(status: int) -> bool:
    """Whether a request that failed with this status (0: no answer; 412: the branch moved on meanwhile) may work later."""
    return status in (0, 408, 412, 429) or status >= 500


def _push_once(
    files: Mapping[str, Path | bytes],
    hub_id: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str | None,
    repo_type: Literal["model", "dataset"],
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="beyond_binary")
    api.create_repo(hub_id, private=private, exist_ok=True, repo_type=repo_type)
    if private and not api.repo_info(hub_id, repo_type=repo_type).private:
        raise ValueError(
            f"{hub_id} exists and is public, but private was asked for; nothing was sent. "
            "Choose another name, or make it private in its settings on the Hub"
        )
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(hub_id, branch=revision, exist_ok=True, repo_type=repo_type)
    parent = api.repo_info(hub_id, revision=revision, repo_type=repo_type).sha
    there = api.list_repo_files(hub_id, revision=parent, repo_type=repo_type)
    ours = {CURVES, METRICS, SETTINGS, REPORT, GALLERY, *storage.FILES}
    old = [n for n in there if (n in ours if repo_type == "model" else re.fullmatch(r"data/[^/]+\.parquet", n))]
    stale = set(old) - set(files)
    commit = api.create_commit(
        hub_id,
        [
            *(CommitOperationAdd(name, source) for name, source in files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in sorted(stale)),
        ],
        commit_message=commit_message or ("Embedder" if repo_type == "model" else "Data set") + " of beyond_binary",
        revision=revision,
        repo_type=repo_type,
        parent_commit=parent,  # what is stale was judged by that commit
    )
    return str(commit.commit_url)


def http_status(error: BaseException) -> int | None:
    """Status of the failed request behind `error`, 0 if it got no answer, None if no request failed."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code)
        if isinstance(cause, ConnectionError | TimeoutError | json.JSONDecodeError):
            return 0  # an answer that is no JSON is a proxy's error page
        if type(cause).__module__.split(".")[0] in ("httpx", "httpx2", "requests"):
            return 0
        cause = cause.__cause__
    return None


def _was_cut(error: BaseException | None) -> bool:
    """Whether a connection that had been made was lost."""
    while error is not None:
        if type(error).__name__ in ("ReadError", "WriteError", "RemoteProtocolError", "RemoteDisconnected"):
            return True
        error = error.__cause__
    return False


def _explained(error: Exception, status: int, hub_id: str) -> Exception:
    """The error to raise for a request that failed: what happened, and what to do."""
    known = error.__cause__ is None or hasattr(error, "response")
    told = " ".join(f"{error if known else f'{error} {error.__cause__}'}".split()) or type(error).__name__
    if status in (401, 403):
        return PermissionError(
            f"the Hub does not let this account write to {hub_id} ({told}); log in with `hf auth login`, or set HF_TOKEN "
            "to a token with write rights"
        )
    if status == 412:
        return ConnectionError(f"{hub_id} was not pushed: others push to it at the same time ({told}); try again")
    if _may_pass(status):
        return ConnectionError(
            f"{hub_id} was not pushed, the Hub cannot be reached or keeps failing ({told}); try again"
        )
    return ValueError(f"the Hub refused {hub_id} ({told})")


def check_hub_id(hub_id: str | None) -> str:
    """Return `hub_id` if it has the form "user/name"; raise a ValueError if not."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not hub_id or not re.fullmatch(r"[^/]+/[^/]+", hub_id):
        raise ValueError(f"expected a Hub id 'user/name', got {hub_id!r}")
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise ValueError(f"expected a Hub id 'user/name', got {hub_id!r}: {error}") from None
    return hub_id


def check_token(token: str | bool | None) -> None:
    """Raise a ValueError, without the token in it, if HTTP could not carry it."""
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token has blanks, line ends or other characters that no token has; copy it again")


def require_login() -> None:
    """Raise a PermissionError if no token is set on this machine, a ValueError if it cannot be one; asks nothing of the Hub."""
    check_token(token := _own_token())
    if token is None:
        raise PermissionError("push_to_hub needs an account: log in with `hf auth login`, or set HF_TOKEN")


def _own_token() -> str | None:
    """The token that is set on this machine."""
    from huggingface_hub import get_token

    return get_token()


def embedder_files(folder: Path, hub_id: str, card: str | bool = True, license: str | None = None) -> Files:
    """What is sent of a folder that `save_pretrained` wrote: its files and a card (made, given, or none)."""
    files: Files = {p.name: p for p in sorted(folder.iterdir()) if p.name in storage.FILES}
    content = json.loads((folder / storage.CONFIG_FILE).read_text(encoding="utf-8"))
    if objective := content["beyond_binary"].get("objective"):
        content["beyond_binary"]["objective"] = public_settings(objective)
        files[storage.CONFIG_FILE] = (json.dumps(content, indent=2) + "\n").encode()
    if isinstance(card, str):
        return files | {CARD: card.encode()}
    try:
        made = write_card(storage.read_config(folder), hub_id, license=license) if card else None
    except Exception as error:
        warnings.warn(f"no model card is written: {type(error).__name__}: {error}", stacklevel=2)
        made = None
    return files | ({} if made is None else {CARD: made.encode()})


def run_files(
    run: str | os.PathLike[str],
    hub_id: str,
    *,
    report: bool = True,
    proxies: bool = True,
    license: str | None = None,
) -> Files:
    """What is sent of a finished run: embedder, objective, settings, metrics, card with curves, report.html, gallery.png.

    Settings are sent without the output folder and with the last part of local paths only. The report and the gallery
    show small copies of the data's images; `report=False` leaves both out. `proxies=False` leaves out what the objective
    learned (proxies are near the mean embedding of each training class); its settings are sent.

    Raises:
        FileNotFoundError: not the folder of a finished run.
        ValueError: a broken embedder.
    """
    run = Path(run)
    if missing := [name for name in ("embedder", METRICS, SETTINGS) if not (run / name).exists()]:
        raise FileNotFoundError(f"expected the folder of a finished run, but {run} has no {', '.join(missing)}")
    embedder = storage.read_config(run / "embedder")
    private = yaml.safe_load((run / SETTINGS).read_text())
    settings = public_settings(private)
    files = embedder_files(run / "embedder", hub_id, card=False)
    if not proxies:
        files.pop(storage.OBJECTIVE_FILE, None)
    files[SETTINGS] = yaml.safe_dump(settings, sort_keys=False).encode()
    files[METRICS] = run / METRICS
    metrics = json.loads((run / METRICS).read_text())
    if "table" in metrics:
        metrics["table"] = {row: with_nan(values) for row, values in metrics["table"].items()}
    skipped = [_short(name) for name in metrics.get("skipped_images") or ()]
    public = {"target": _short(metrics.get("target") or ""), "skipped_images": skipped}
    if changed := {key: value for key, value in public.items() if value and value != metrics[key]}:
        metrics |= changed
        files[METRICS] = (to_json(metrics, indent=2) + "\n").encode()
    if report and (run / REPORT).exists():
        files[REPORT] = public_text((run / REPORT).read_text(encoding="utf-8"), private).encode()
    if report and (run / GALLERY).exists():
        files[GALLERY] = run / GALLERY
    try:
        if curves := training_curves(Run(run).history(), metrics["table"]):
            files[CURVES] = curves
    except Exception as error:  # such as no matplotlib
        warnings.warn(f"no training curves are drawn: {type(error).__name__}: {error}", stacklevel=2)
    try:
        pictures = (name if name in files else None for name in (CURVES, GALLERY, REPORT))
        record = Record(settings, metrics, *pictures)
        files[CARD] = write_card(embedder, hub_id, record, license=license).encode()
    except Exception as error:
        warnings.warn(f"no model card is written: {type(error).__name__}: {error}", stacklevel=2)
    return files


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run without the output folder and with the last part of local paths only."""

    def public(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: public(item, key) for key, item in value.items() if key != "output"}
        if isinstance(value, list):
            return [public(item) for item in value]
        return _short(value, key in PATHS) if isinstance(value, str) else value

    shown: dict[str, Any] = public(settings)
    return shown


def public_text(page: str, settings: Any) -> str:
    """A page (HTML) in which the local paths among the settings have their last part only; pictures in it are left alone."""
    paths = {escape(path): escape(short) for path, short in _paths(settings)}
    if not paths:
        return page
    longest = sorted(paths, key=len, reverse=True)
    found = re.compile(rf"(?<![\w/<])(?:{'|'.join(map(re.escape, longest))})(?!\w)")
    parts = re.split(r'("data:[^"]*")', page)
    parts[::2] = [found.sub(lambda path: paths[path[0]], part) for part in parts[::2]]
    return "".join(parts)


def _paths(settings: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The local paths among some settings, and what of them is shown."""
    if isinstance(settings, dict | list):
        for name, value in settings.items() if isinstance(settings, dict) else ((key, value) for value in settings):
            yield from _paths(value, name)
    elif isinstance(settings, str) and (short := _short(settings, key in PATHS)) != settings:
        yield settings, short


def _short(value: str, path: bool = False) -> str:
    """The last part of a local path, with each "kind:" before it, and of paths within a spec; other texts as they are.

    Local is what starts at a root or with dots, and (`path`) whatever does not name a set or weights on the Hub.
    """
    kind, rest = re.fullmatch(r"((?:[\w-]{2,}:)*)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    local = re.match(r"[/\\~]|\.\.?[/\\]|[A-Za-z]:[\\/]", rest)
    if local or (path and not kind.endswith(("hub:", "embedded:"))):
        return kind + (PureWindowsPath(rest).name or rest)
    quoted = r"([=(,]\s*)(['\"])([^'\"]*[/\\][^'\"]*)\2"
    return re.sub(quoted, lambda part: part[1] + part[2] + PureWindowsPath(part[3]).name + part[2], value)


def push_run(
    run: str | os.PathLike[str],
    hub_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    report: bool = True,
    proxies: bool = True,
    license: str | None = None,
) -> str:
    """Send a finished run in one commit and return the commit's address; see `run_files` and `push`."""
    files = run_files(run, check_hub_id(hub_id), report=report, proxies=proxies, license=license)
    return push(files, hub_id, private=private, token=token, revision=revision, commit_message=commit_message)
