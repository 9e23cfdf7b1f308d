"""Publishing and loading with the unmodified clients of the Hub, timm and open_clip, against a double on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_client import ROOT, Client
from hub_double import TOKEN, Fault, Hub, Repo
from PIL import Image
from safetensors.torch import load_file, save

from beyond_binary import hub as publishing
from beyond_binary.embedder import Embedder, create_embedder
from beyond_binary.objective import Objective

MAKE = """
import torch, beyond_binary as bb
def make(seed=0, trunk="timm/test_efficientnet", **options):
    torch.manual_seed(seed)
    return bb.create_embedder(trunk, **{"dim": 8, "image_size": 64, **options}).eval()
def same(a, b):
    x = torch.randn(2, 3, *a.preprocess["size"])
    states = [e.state_dict() for e in (a, b)]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()) and a.config == b.config
    assert torch.equal(a(x), b(x))
"""
CLIP = """
import json, os, tempfile, open_clip
folder = tempfile.mkdtemp(dir=os.environ["HF_HOME"])
json.dump({
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}, open(f"{folder}/tiny-clip.json", "w"))
open_clip.add_model_config(folder)
clip = make(trunk="open_clip/tiny-clip", head="none", dim=None, image_size=32)
"""
FIRST = ["README.md", "beyond_binary_head.safetensors", "config.json", "model.safetensors"]


# ---- pushing and loading


def test_an_embedder_comes_back_from_the_hub_bit_for_bit_and_its_trunk_in_timm(hub: Hub, client: Client) -> None:
    told = client.run(MAKE + """
import timm
model = make(pooling="gem")
print(model.push_to_hub("tester/bits"))
same(model, bb.Embedder.from_pretrained("tester/bits"))
trunk = timm.create_model("hf-hub:tester/bits", pretrained=True).eval()
x = torch.randn(2, 3, 64, 64)
assert torch.equal(trunk(x), model.trunk(x))
""")  # fmt: skip
    commit = hub.repos["tester/bits"].at()
    assert f"{hub.url}/tester/bits/commit/{commit.sha}" in told
    assert hub.repos["tester/bits"].history() == ["initial commit", "Embedder of beyond_binary"]
    assert sorted(commit.files) == [".gitattributes", *FIRST]
    assert not hub.repos["tester/bits"].private


def test_an_objective_comes_back_from_the_hub_bit_for_bit(hub: Hub, client: Client) -> None:
    client.run(MAKE + """
torch.manual_seed(1)
objective = bb.create_objective("proxy_anchor", num_classes=3, dim=8)
print(make().push_to_hub("tester/objective", objective=objective, license="mit"))
assert bb.Embedder.from_pretrained("tester/objective").target == "classes"
""")  # fmt: skip
    assert hub.count("GET .*/resolve/.*objective.safetensors") == 0, "only who asks for it gets it"
    card = hub.files("tester/objective")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    client.run(MAKE + """
torch.manual_seed(1)
objective = bb.create_objective("proxy_anchor", num_classes=3, dim=8)
again = bb.Objective.from_pretrained("tester/objective")
assert again.config == objective.config and torch.equal(again.proxies.weight, objective.proxies.weight)
""")  # fmt: skip


def test_default_weights_are_told_by_their_tag(hub: Hub, client: Client) -> None:
    repo = hub.repos["timm/test_resnet.r160_in1k"] = Repo("timm/test_resnet.r160_in1k", private=False)
    repo.commit("main", "weights", {"model.safetensors": save(timm.create_model("test_resnet").state_dict())}, set())
    client.run(MAKE + """
model = make(trunk="timm/test_resnet", pretrained=True)
assert model.config["weights"] == "r160_in1k"
model.push_to_hub("tester/tuned")
""")  # fmt: skip
    card = hub.files("tester/tuned")["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "timm/test_resnet.r160_in1k"
    assert "pretrained weights `r160_in1k`, which have a licence of their own" in card


def test_open_clip_loads_what_was_pushed(hub: Hub, client: Client) -> None:
    client.run(MAKE + CLIP + """
clip.push_to_hub("tester/clip", commit_message="a tiny CLIP")
same(clip, bb.Embedder.from_pretrained("tester/clip"))
model, _ = open_clip.create_model_from_pretrained("hf-hub:tester/clip")
x = torch.randn(2, 3, 32, 32)
assert torch.equal(model.eval().encode_image(x, normalize=True), clip(x))
tokens = open_clip.get_tokenizer("hf-hub:tester/clip")(["a cat"])
assert torch.allclose(model.encode_text(tokens, normalize=True), clip.encode_text("a cat"), atol=1e-6)
""")  # fmt: skip
    assert hub.repos["tester/clip"].history()[-1] == "a tiny CLIP"
    card = hub.files("tester/clip")["README.md"].decode()
    assert "pipeline_tag: zero-shot-image-classification" in card


def test_published_weights_are_a_trunk(hub: Hub, client: Client, tmp_path: Path) -> None:
    """What timm and open_clip push themselves; a saved embedder then needs neither the Hub nor their cache."""
    client.run(MAKE + CLIP + f"""
import sys, timm
from timm.models import push_to_hf_hub
torch.manual_seed(3)
theirs = {{
    "net": timm.create_model("test_efficientnet", num_classes=5), "vit": timm.create_model("test_vit", num_classes=3),
}}
for name, model in theirs.items():
    push_to_hf_hub(model, f"tester/{{name}}", safe_serialization=True)
    made = make(seed=1, trunk=f"timm/hf-hub:tester/{{name}}", image_size=None)
    state = made.trunk.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if k in state) and len(state) > 20
    data = timm.data.resolve_model_data_config(model)
    assert made.preprocess["size"] == list(data["input_size"][1:]) and made.preprocess["mean"] == list(data["mean"])
    assert made.config["weights"] == f"hf-hub:tester/{{name}}" and made.config["trunk"] == f"timm/{{model.pretrained_cfg['architecture']}}"
    made.save_pretrained(f"{tmp_path}/{{name}}")
    small = make(seed=1, trunk=f"timm/hf-hub:tester/{{name}}", image_size=64, pooling="avg")
    assert small.preprocess["size"] == [64, 64]
    small.save_pretrained(f"{tmp_path}/{{name}}-small")
    torch.save([made(torch.ones(1, 3, *made.preprocess["size"])), small(torch.ones(1, 3, 64, 64))], f"{tmp_path}/{{name}}.z")
import importlib, pathlib, safetensors.torch
from huggingface_hub import HfApi
importlib.import_module("open_clip.push_to_hf_hub")
their_folder = pathlib.Path(tempfile.mkdtemp())
config = json.load(open(f"{{folder}}/tiny-clip.json"))
their_clip = open_clip.create_model("tiny-clip").eval()
sys.modules["open_clip.push_to_hf_hub"].save_config_for_hf(their_clip, their_folder / "open_clip_config.json", config)
safetensors.torch.save_file(their_clip.state_dict(), their_folder / "open_clip_model.safetensors")
HfApi().create_repo("tester/theirs")
HfApi().upload_folder(repo_id="tester/theirs", folder_path=their_folder)
x = torch.randn(2, 3, 32, 32)
made = make(seed=1, trunk="open_clip/hf-hub:tester/theirs", head="none", dim=None, image_size=None)
assert torch.equal(made(x), their_clip.encode_image(x, normalize=True))
assert made.preprocess["mean"] == list(their_clip.visual.image_mean) and made.preprocess["size"] == [32, 32]
tokens = open_clip.get_tokenizer("tiny-clip")(["a cat"])
assert torch.allclose(made.encode_text(["a cat"]), their_clip.encode_text(tokens, normalize=True), atol=1e-6)
clip.push_to_hub("tester/clip")
again = make(seed=1, trunk="open_clip/hf-hub:tester/clip", head="none", dim=None, image_size=None)
x = torch.randn(2, 3, 32, 32)
assert torch.equal(again(x), clip(x)) and again.preprocess == clip.preprocess
assert again.config["trunk"] == "open_clip/hf-hub:tester/clip"
assert torch.equal(again.encode_text(["a cat"]), clip.encode_text(["a cat"]))
again.save_pretrained("{tmp_path}/clip")
same(again, bb.Embedder.from_pretrained("{tmp_path}/clip"))
for trunk, options, told in (
    ("open_clip/hf-hub:tester/net", {{}}, "tester/net is no trunk of open_clip: expected open_clip_config.json"),
    ("timm/hf-hub:tester/net", {{"weights": "a1_in1k"}}, "has weights of its own"),
    ("timm/hf-hub:tester/none", {{}}, "no folder 'tester/none' here, and the Hub did not give it"),
):
    try:
        make(trunk=trunk, **options)
    except (ValueError, FileNotFoundError) as error:
        assert told in str(error), error
    else:
        raise AssertionError(trunk)
""")  # fmt: skip
    hub.repos.clear()
    for name in ("net", "vit"):
        expected = torch.load(tmp_path / f"{name}.z", weights_only=True)
        for folder, z in zip((name, f"{name}-small"), expected, strict=True):
            again = Embedder.from_pretrained(tmp_path / folder)
            torch.testing.assert_close(again(torch.ones(1, 3, *again.preprocess["size"])), z)


def test_the_snippets_of_the_card_work_as_pasted(hub: Hub, client: Client) -> None:
    client.run(MAKE + CLIP + 'make().push_to_hub("tester/paste"); clip.push_to_hub("tester/paste-clip")')
    for name, count in (("tester/paste", 2), ("tester/paste-clip", 3)):
        snippets = re.findall(r"```python\n(.*?)```", hub.files(name)["README.md"].decode(), re.DOTALL)
        assert len(snippets) == count
        for snippet in snippets:
            client.run(snippet)
    assert "encode_text" not in hub.files("tester/paste")["README.md"].decode()


def test_private_needs_a_token_and_is_never_published_in_the_open(hub: Hub, client: Client) -> None:
    client.run(MAKE + 'make().push_to_hub("tester/hidden", private=True)')
    assert hub.repos["tester/hidden"].private
    load = 'import beyond_binary as bb; bb.Embedder.from_pretrained("tester/hidden", token={}, cache_dir={!r})'
    client.run(load.format(None, str(client.home / "with")))
    told = client.run(load.format(False, str(client.home / "without")), status=1)
    assert "FileNotFoundError: no folder 'tester/hidden' here, and the Hub did not give it" in told
    client.run(MAKE + 'make().push_to_hub("tester/open")')
    before = hub.files("tester/open")
    told = client.run(MAKE + 'make(1).push_to_hub("tester/open", private=True)', status=1)
    assert "ValueError: tester/open exists and is public, but private was asked for" in told
    assert hub.files("tester/open") == before


def test_pushing_again_replaces_what_changed_and_leaves_other_files(hub: Hub, client: Client) -> None:
    client.run(MAKE + 'make().push_to_hub("tester/again")')
    repo, uploads = hub.repos["tester/again"], hub.count("PUT")
    client.run(MAKE + 'make().push_to_hub("tester/again")')
    assert len(repo.commits) == 2, "nothing changed, no commit"
    repo.commit("main", "by hand", {**hub.files("tester/again"), "notes.txt": b"mine", "README.md": b"mine"}, set())
    client.run(MAKE + 'make(head="none", dim=None).push_to_hub("tester/again", card=False)')
    left = [".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"]
    assert sorted(hub.files("tester/again")) == left, "the head of the first embedder is gone"
    assert hub.files("tester/again")["README.md"] == b"mine"
    assert len(repo.commits) == 4
    assert hub.count("PUT") == uploads, "the trunk is the same"
    client.run(MAKE + 'make().push_to_hub("tester/again", card="---\\nlicense: mit\\n---\\n# My words\\n")')
    assert hub.files("tester/again")["README.md"].endswith(b"# My words\n")


def test_a_branch_is_pushed_and_loaded_and_main_stays(hub: Hub, client: Client) -> None:
    client.run(MAKE + """
for seed, revision in ((0, None), (1, "dev"), (1, "dev")):
    make(seed).push_to_hub("tester/branch", revision=revision)
same(make(0), bb.Embedder.from_pretrained("tester/branch"))
same(make(1), bb.Embedder.from_pretrained("tester/branch", revision="dev"))
""")  # fmt: skip
    repo = hub.repos["tester/branch"]
    assert len(repo.commits) == 3
    load = 'import beyond_binary as bb; bb.Embedder.from_pretrained("tester/branch", revision={!r})'
    client.run(load.format(repo.branches["main"]))
    told = client.run(load.format("no"), status=1)
    assert "FileNotFoundError: no folder 'tester/branch' here, and the Hub did not give it" in told


# ---- faults

ONCE = [
    Fault("POST /api/repos/create", 503),
    Fault("GET .*/tree/", "slow"),
    Fault("POST /api/validate-yaml", 502),
    Fault("POST .*/preupload/", 500, 2),
    Fault("POST .*/objects/batch", "cut"),
    Fault("PUT /lfs/", "cut", 2),
    Fault("PUT /lfs/", 503, 2),
    Fault("POST .*/lfs/verify", 503),
    Fault("POST .*/commit/", 503, 2),
    Fault("POST .*/commit/", 429),
    Fault("POST .*/commit/", "slow"),
    Fault("PUT /lfs/", "slow", 2),
    Fault("POST .*/commit/", 412),
]


@pytest.mark.parametrize("fault", ONCE, ids=lambda fault: f"{fault.pattern} {fault.kind}")
def test_a_passing_fault_is_survived(hub: Hub, client: Client, fault: Fault) -> None:
    hub.faults = [Fault(fault.pattern, fault.kind, fault.times)]
    client.run(MAKE + 'make().push_to_hub("tester/faults")')
    assert hub.faults[0].times == 0
    assert hub.repos["tester/faults"].history() == ["initial commit", "Embedder of beyond_binary"]
    assert sorted(hub.files("tester/faults")) == [".gitattributes", *FIRST]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST /api/repos/create", 500, 999),
        Fault("POST /api/validate-yaml", "cut", 999),
        Fault("PUT /lfs/", "cut", 999),
        Fault("POST .*/commit/", 504, 999),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.kind}",
)
def test_a_lasting_fault_is_told_and_the_repository_stays_as_it_was(hub: Hub, client: Client, fault: Fault) -> None:
    client.run(MAKE + 'make().push_to_hub("tester/faults")')
    before = dict(hub.files("tester/faults"))
    hub.faults = [fault]
    told = client.run(MAKE + 'make(1).push_to_hub("tester/faults")', status=1).strip().splitlines()[-1]
    assert re.match("ConnectionError: tester/faults was not pushed, the Hub cannot be reached or keeps failing", told)
    assert hub.files("tester/faults") == before
    assert len(hub.repos["tester/faults"].commits) == 2
    hub.faults = []
    client.run(
        MAKE + 'make(1).push_to_hub("tester/faults"); same(make(1), bb.Embedder.from_pretrained("tester/faults"))'
    )


@pytest.mark.parametrize("pattern", ["POST /api/repos/create", "GET /api/models/", "PUT /lfs/", "POST .*/commit/"])
def test_a_hub_that_falls_silent_holds_nothing_up(hub: Hub, client: Client, pattern: str) -> None:
    push = MAKE + 'from beyond_binary import hub; hub.limit_silence(0.5); make().push_to_hub("tester/silent")'
    hub.faults = [Fault(pattern, "silent", 999)]
    started = time.monotonic()
    told = client.run(push, status=1).strip().splitlines()[-1]
    assert time.monotonic() - started < 45
    assert re.match("ConnectionError: tester/silent was not pushed, the Hub cannot be reached or keeps failing", told)
    hub.faults = [Fault(pattern, "silent", 1)]
    client.run(push)
    assert sorted(hub.files("tester/silent")) == [".gitattributes", *FIRST]


def test_two_pushes_at_the_same_time_do_not_mix(hub: Hub, client: Client) -> None:
    push = MAKE + 'make(head="none", dim=None).push_to_hub("tester/race")'
    hub.faults = [Fault("POST .*/commit/", "race")]
    client.run(push)
    assert hub.repos["tester/race"].history()[1:] == ["of somebody else", "Embedder of beyond_binary"]
    assert "beyond_binary_head.safetensors" not in hub.files("tester/race"), (
        "the other push's head is gone with its trunk"
    )
    hub.faults = [Fault("POST .*/commit/", "race", 999)]
    told = client.run(push.replace("make(head", "make(1, head"), status=1).strip().splitlines()[-1]
    assert re.match("ConnectionError: tester/race was not pushed: others push to it at the same time", told), told


def test_an_upload_that_was_cut_off_goes_on_where_it_stopped(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("POST .*/commit/", 504, 999)]
    client.run(MAKE + 'make().push_to_hub("tester/go-on")', status=1)
    hub.faults, uploads = [], hub.count("PUT")
    assert uploads == 2
    client.run(MAKE + 'make().push_to_hub("tester/go-on")')
    assert hub.count("PUT") == uploads


def test_files_that_were_sent_are_not_sent_again(hub: Hub, client: Client) -> None:
    client.run(MAKE + f"make().save_pretrained({str(client.home / 'saved')!r})")
    head, trunk = (
        hashlib.sha256((client.home / "saved" / name).read_bytes()).hexdigest()
        for name in ("beyond_binary_head.safetensors", "model.safetensors")
    )
    hub.faults = [Fault(f"PUT /lfs/.*{trunk}", "cut", 999)]
    client.run(MAKE + 'make().push_to_hub("tester/second")', status=1)
    assert hub.faults[0].times < 999
    assert head in hub.objects
    assert trunk not in hub.objects
    assert hub.repos["tester/second"].history() == ["initial commit"]
    hub.faults, before = [], len(hub.requests)
    client.run(MAKE + 'make().push_to_hub("tester/second")')
    assert [request for request in hub.requests[before:] if request.startswith("PUT")] == [f"PUT /lfs/{trunk}"]
    assert sorted(hub.files("tester/second")) == [".gitattributes", *FIRST]


def test_an_answer_that_is_lost_makes_no_second_commit(hub: Hub, client: Client) -> None:
    hub.faults = [Fault("POST .*/commit/", "cut")]
    client.run(MAKE + 'make().push_to_hub("tester/lost")')
    assert hub.faults[0].times == 0
    assert hub.repos["tester/lost"].history() == ["initial commit", "Embedder of beyond_binary"]
    assert sorted(hub.files("tester/lost")) == [".gitattributes", *FIRST]


@pytest.mark.parametrize(
    ("fault", "token", "told"),
    [
        (
            Fault("GET .*", 503, 999),
            None,
            "FileNotFoundError: no folder 'tester/read' here, and the Hub did not give it",
        ),
        (None, "hf_wrong", "PermissionError: no folder 'tester/read' here, .* log in with `hf auth login`"),
        (Fault("GET .*/resolve/", "slow", 3), None, ""),
    ],
)
def test_what_keeps_an_embedder_from_being_read_is_told(
    hub: Hub, client: Client, fault: Fault | None, token: str | None, told: str
) -> None:
    client.run(MAKE + 'make().push_to_hub("tester/read")')
    hub.faults = [fault] if fault else []
    load = f'bb.Embedder.from_pretrained("tester/read", token={token!r}, cache_dir={str(client.home / "read")!r})'
    output = client.run(MAKE + f"same(make(), {load})", status=1 if told else 0)
    assert re.search(told, " ".join(output.splitlines())), output
    assert "hf_wrong" not in "".join(output.splitlines()[-1:])


def test_a_card_that_cannot_be_written_ends_no_push(hub: Hub, client: Client) -> None:
    told = client.run(MAKE + """
import warnings, beyond_binary.hub as module
warnings.simplefilter("default")
def broken(*args, **options):
    raise KeyError("table")
module.write_card = broken
make().push_to_hub("tester/bare")
""")  # fmt: skip
    assert "no model card is written: KeyError: 'table'" in told
    assert sorted(hub.files("tester/bare")) == [".gitattributes", *FIRST[1:]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("'tester/x', token='hf_wrong'", "PermissionError: .*Invalid username or password.*hf auth login"),
        ("'tester/x', token=False", "PermissionError: .*HF_TOKEN"),
        ("'tester/x', token='hf_good\\n'", "ValueError: the token has blanks"),
        ("'somebody/x'", "PermissionError: .*does not let this account write to somebody/x.*no rights"),
        ("'x'", "ValueError: expected a Hub id 'user/name', got 'x'"),
        ("'tester/a b'", "ValueError: expected a Hub id"),
        ("'tester/x', card='---\\nlicense: My Own\\n---\\n'", 'ValueError: the Hub refused .*"license" must be one of'),
        ("'tester/x', revision='refs/pr/7'", "ValueError: the Hub refused tester/x .*Invalid rev id"),
    ],
)
def test_what_cannot_be_pushed_is_told_at_once(hub: Hub, client: Client, call: str, message: str) -> None:
    told = client.run(MAKE + f"make().push_to_hub({call})", status=1)
    last = told[told.rindex("Error: ") - 12 :]
    assert re.search(message, " ".join(told.splitlines())), last
    assert "hf_wrong" not in last
    assert "hf_good" not in last
    assert len(hub.requests) < 12, "no second try"
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())
    assert hub.count("PUT") == 0


def test_a_download_that_is_cut_off_is_tried_again_or_told(hub: Hub, client: Client) -> None:
    client.run(MAKE + 'make().push_to_hub("tester/cut")')
    hub.faults = [Fault("GET /lfs/", "cut", 1), Fault("GET .*/resolve/.*config", 503, 1)]
    load = 'bb.Embedder.from_pretrained("tester/cut", cache_dir={!r})'
    client.run(MAKE + f"same(make(), {load.format(str(client.home / 'first'))})")
    assert [fault.times for fault in hub.faults] == [0, 0]
    hub.faults = [Fault("GET /lfs/", "cut", 999)]
    told = client.run(MAKE + load.format(str(client.home / "second")), status=1)
    assert "FileNotFoundError: no folder 'tester/cut' here, and the Hub did not give it" in told


def test_a_token_that_http_cannot_carry_is_not_repeated_in_the_error(client: Client) -> None:
    told = client.run(f'import beyond_binary as bb; bb.Embedder.from_pretrained("a/b", token={TOKEN[:9]!r} + "\\n")', 1)
    assert "ValueError: the token has blanks" in told


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_told(run: tuple[Path, str], client: Client) -> None:
    with Hub() as gone:
        closed = gone.url
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "push.py"), str(run[0])],
        env={**client.environment, "HF_ENDPOINT": closed}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.match("error: tester/digits was not pushed, the Hub cannot be reached", done.stderr), done.stderr
    assert TOKEN not in done.stderr + done.stdout


@pytest.mark.slow
def test_the_recipes_do_not_wait_for_a_silent_hub(run: tuple[Path, str], hub: Hub, client: Client) -> None:
    hub.faults = [Fault("POST .*/commit/", "silent", 999)]
    short = "import beyond_binary.hub; beyond_binary.hub.SILENCE = 0.5;"
    told = client.run(short + recipe("push", run[0]), status=2)
    assert "error: tester/digits was not pushed, the Hub cannot be reached" in told


# ---- runs

TRAIN = [
    "--config", str(ROOT / "recipes" / "configs" / "digits.yaml"), "--data.rows", "[96, 40]",
    "--embedder.trunk", "timm/test_byobnet", "--embedder.dim", "8", "--sampler.batch_size", "16", "--optimizer.epochs",
    "1", "--progress", "false", "--trackers", "[]", "--cpu", "true", "--push_to_hub", "true",
]  # fmt: skip


def recipe(name: str, *arguments: str | Path) -> str:
    """Code that runs a recipe as a program."""
    path = str(ROOT / "recipes" / f"{name}.py")
    argv = [path, *map(str, arguments)]
    return f"import runpy, sys; sys.argv = {argv!r}; runpy.run_path({path!r}, run_name='__main__')"


@pytest.fixture(scope="module")
def run(running: tuple[Hub, Client], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose push at the end failed, and what it told."""
    hub, client = running
    folder = tmp_path_factory.mktemp("runs") / "digits"
    hub.faults[:] = [Fault("POST .*/commit/", 503, 999)]
    told = client.run(recipe("train", *TRAIN, "--output", folder, "--hub_id", "tester/digits"), status=1)
    return folder, told


@pytest.mark.slow
def test_a_run_is_not_lost_when_the_push_fails_and_goes_out_later(
    run: tuple[Path, str], hub: Hub, client: Client
) -> None:
    folder, told = run
    assert "error: not pushed to the Hub: tester/digits was not pushed, the Hub cannot be reached" in told
    assert (
        f"the run is complete in {folder}; to push it: python recipes/push.py {folder} --hub-id tester/digits" in told
    )
    assert (folder / "metrics.json").exists()
    again = client.run(recipe("push", folder, "--license", "mit"))
    assert re.search(rf"pushed to {hub.url}/tester/digits/commit/\w+", again)
    files = hub.files("tester/digits")
    extra = {".gitattributes", "README.md", "config.yaml", "curves.png", "gallery.png", "metrics.json", "report.html"}
    assert files.keys() == extra | {p.name for p in (folder / "embedder").iterdir()}
    assert files["metrics.json"] == (folder / "metrics.json").read_bytes()
    assert files["curves.png"].startswith(b"\x89PNG")
    assert "output" not in yaml.safe_load(files["config.yaml"])
    assert str(folder).encode() not in b"".join(files.values())
    assert not [p for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    client.run(
        MAKE
        + f'same(bb.Embedder.from_pretrained("tester/digits"), bb.Embedder.from_pretrained({str(folder)!r} + "/embedder"))'
    )
    card = files["README.md"].decode()
    facts = json.loads((folder / "metrics.json").read_text())
    known = yaml.safe_load(card.split("---")[1])
    results = {m["type"]: m["value"] for r in known["model-index"][0]["results"] for m in r["metrics"]}
    assert results["recall_at_1"] == round(facts["table"]["after"]["recall_at_1"], 6)
    assert known["license"] == "mit"
    assert facts["data"]["train"] == {"items": 96, "hash": facts["data"]["train"]["hash"]}
    for shown in (
        facts["data"]["query"]["hash"],
        "![Training curves](curves.png)",
        "](gallery.png)",
        "](report.html)",
        "torch ",
    ):
        assert shown in card


@pytest.mark.slow
def test_a_run_pushes_itself_and_is_private_if_asked(
    run: tuple[Path, str], hub: Hub, client: Client, tmp_path: Path
) -> None:
    more = ["--report", "false", "--hub_private", "true", "--hub_license", "mit", "--hub_proxies", "false"]
    told = client.run(recipe("train", *TRAIN, *more, "--output", tmp_path / "r", "--hub_id", "tester/itself"))
    assert f"pushed to {hub.url}/tester/itself/commit/" in told
    assert hub.repos["tester/itself"].private
    left_out = {"report.html", "gallery.png", "beyond_binary_objective.safetensors"}
    assert not left_out & hub.files("tester/itself").keys()
    assert b"license: mit" in hub.files("tester/itself")["README.md"]
    first, second = (json.loads((p / "metrics.json").read_text())["data"] for p in (run[0], tmp_path / "r"))
    assert first == second


@pytest.mark.slow
def test_a_dry_run_sends_nothing(run: tuple[Path, str], hub: Hub, client: Client) -> None:
    shown = client.run(recipe("push", run[0], "--hub-id", "tester/dry", "--dry-run", "--no-report", "--no-proxies"))
    assert hub.requests == []
    assert "would be sent to tester/dry" in shown
    size = (run[0] / "embedder" / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in shown
    assert "# dry\n" in shown
    assert "report.html" not in shown
    assert "gallery.png" not in shown
    assert "objective.safetensors" not in shown


def test_a_token_that_cannot_be_one_is_noticed_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x\u200by")
    for act in (publishing.require_login, lambda: publishing.push({}, "a/b")):
        with pytest.raises(ValueError, match="no token has; copy it again") as refused:
            act()
        assert "hf_x" not in str(refused.value)


def test_pushing_at_the_end_is_refused_before_training_where_it_cannot_work(client: Client, tmp_path: Path) -> None:
    told = client.run(recipe("train", *TRAIN, "--output", tmp_path / "r"), status=2)
    assert "error: expected a Hub id 'user/name', got None" in told
    logout = "import os; del os.environ['HF_TOKEN'];"
    told = client.run(logout + recipe("train", *TRAIN, "--output", tmp_path / "r", "--hub_id", "a/b"), status=2)
    assert "error: push_to_hub needs an account: log in with `hf auth login`, or set HF_TOKEN" in told
    assert not (tmp_path / "r").exists()


def test_a_folder_without_a_finished_run_is_refused(client: Client, tmp_path: Path) -> None:
    told = client.run(recipe("push", tmp_path, "--hub-id", "tester/x"), status=2)
    assert f"error: expected the folder of a finished run, but {tmp_path} has no embedder" in told
    assert "error: expected a Hub id" in client.run(recipe("push", tmp_path), status=2)


def test_a_card_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    create_embedder("timm/test_efficientnet", dim=4, image_size=64).save_pretrained(tmp_path / "embedder")
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("data: {source: /home/me/photos}\noutput: /home/me/run\n")
    with (
        pytest.warns(UserWarning, match="no model card is written: KeyError: 'objective'"),
        pytest.warns(UserWarning, match="no training curves are drawn"),
    ):
        files = publishing.run_files(tmp_path, "user/name")
    assert files["config.yaml"] == b"data:\n  source: photos\n"
    assert files.keys() == {*FIRST[1:], "metrics.json", "config.yaml"}


@pytest.mark.slow
def test_a_run_tells_which_data_of_the_hub_it_was_made_with(hub: Hub, client: Client, tmp_path: Path) -> None:
    """One of two configurations, at the commit that the branch stood at."""
    client.run("""
import io, datasets, numpy as np
from huggingface_hub import HfApi
api, rng = HfApi(), np.random.default_rng(0)
api.create_repo("tester/two", repo_type="dataset")
def table(n):
    images = [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(n)]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 4 for i in range(n)]}).cast_column("image", datasets.Image())
head = "---\\nconfigs:\\n- {config_name: small, data_files: small.parquet}\\n- {config_name: large, data_files: large.parquet}\\n---\\n"
for name, rows in (("small", 48), ("large", 64)):
    file = io.BytesIO()
    table(rows).to_parquet(file)
    api.upload_file(path_or_fileobj=file.getvalue(), path_in_repo=f"{name}.parquet", repo_id="tester/two", repo_type="dataset")
api.upload_file(path_or_fileobj=head.encode(), path_in_repo="README.md", repo_id="tester/two", repo_type="dataset")
""")  # fmt: skip
    commit = hub.repos["datasets:tester/two"].at().sha
    folder = tmp_path / "run"
    changes = [
        "--data.source", "hub:tester/two", "--data.config_name", "large", "--data.label", "label", "--data.splitting", "class_disjoint",
        "--data.rows", "null", "--data.revision", "main", "--push_to_hub", "false", "--output", str(folder),
    ]  # fmt: skip
    client.run(recipe("train", *TRAIN, *changes))
    origin = json.loads((folder / "metrics.json").read_text())["origin"]
    assert (origin["config"], origin["commit"]) == ("large", commit)
    client.run(recipe("push", folder, "--hub-id", "tester/from-hub"))
    card = hub.files("tester/from-hub")["README.md"].decode()
    assert commit in card
    assert "large" in card
    assert yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]["dataset"]["revision"] == commit


def test_settings_that_cannot_be_read_end_with_a_message(client: Client, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1")
    assert "error: while parsing" in client.run(recipe("push", tmp_path), status=2)
    (tmp_path / "config.yaml").write_text("")
    assert "error: expected a Hub id" in client.run(recipe("push", tmp_path), status=2)


def test_a_card_without_curves(run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib, an extra, is not installed."""

    def broken(*args: object) -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'")

    monkeypatch.setattr(publishing, "training_curves", broken)
    with pytest.warns(UserWarning, match="no training curves are drawn: ModuleNotFoundError"):
        files = publishing.run_files(run[0], "user/name")
    assert publishing.CURVES not in files
    assert publishing.CURVES not in files["README.md"].decode()


# ---- from training to the loaders of three libraries

LOADERS = {
    "ours": """
import beyond_binary as bb
model = bb.Embedder.from_pretrained(NAME)
z = model.encode(paths)
""",
    "timm": """
import timm
model = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
z = model(torch.stack([transform(image) for image in images]))
""",
    "open_clip": """
import open_clip
model, transform = open_clip.create_model_from_pretrained(f"hf-hub:{NAME}")
z = model.eval().encode_image(torch.stack([transform(image) for image in images]))
""",
}
LOAD = """
import sys, torch
from PIL import Image
from safetensors.torch import save_file
NAME, target, *paths = sys.argv[1:]
images = [Image.open(path).convert("RGB") for path in paths]
with torch.no_grad():
{loader}
save_file({{"z": z}}, target)
assert ("beyond_binary" in sys.modules) == {ours}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("library", "trunk"), [("timm", "timm/test_byobnet"), ("open_clip", "open_clip/tiny-clip")])
def test_a_trained_embedder_is_the_same_in_three_libraries(
    hub: Hub, client: Client, tmp_path: Path, library: str, trunk: str
) -> None:
    """Trained and pushed by the trainer; pulled in processes of their own, each with an empty cache and no token."""
    options = ["--embedder.trunk", trunk, "--report", "false", "--output", tmp_path / "run", "--hub_id", "tester/e2e"]
    client.run(MAKE + CLIP + recipe("train", *TRAIN, *options))
    rng, paths = np.random.default_rng(0), []
    for number, shape in enumerate([(32, 32, 3), (70, 45, 3), (20, 33, 3)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    trained = Embedder.from_pretrained(tmp_path / "run" / "embedder")
    found = {}
    for who in ("ours", library):
        code = LOAD.format(loader=textwrap.indent(LOADERS[who], "    "), ours=who == "ours")
        environment = {**client.environment, "HF_HOME": str(tmp_path / f"cache of {who}"), "PYTHONPATH": str(ROOT)}
        del environment["HF_TOKEN"]
        command = [sys.executable, "-c", code, "tester/e2e", str(tmp_path / who), *paths]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[who] = load_file(tmp_path / who)["z"]
    sent = {name: content for name, content in hub.files("tester/e2e").items() if name.endswith(".safetensors")}
    assert sent == {name: (tmp_path / "run" / "embedder" / name).read_bytes() for name in sent}
    torch.testing.assert_close(found["ours"], trained.encode(paths), rtol=0, atol=1e-6)  # sums in another process
    assert trained.dim == 8
    with torch.no_grad():
        pixels = torch.stack([trained.transform(Image.open(path)) for path in paths])
        features = trained.trunk(pixels) if library == "timm" else trained.trunk.encode_image(pixels)
    torch.testing.assert_close(found[library], features, rtol=1e-5, atol=1e-6)
    assert Objective.from_pretrained(tmp_path / "run" / "embedder").config["loss"] == "pd_loss"
