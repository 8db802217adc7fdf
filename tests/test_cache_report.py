"""`tito cache-report`: its figures against their definitions, its errors in one sentence."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from tinytorch.caches import CACHES
from tinytorch.caches import report as cache_report
from tinytorch.caches.report import command, course_prose, draw, measure, shards
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import next_token_loss
from tinytorch.tito.project import TitoError, find_project
from toy import REPO

V, TOKENS, NEW = 40, 90, 5


@pytest.fixture(scope="module")
def model():
    model = Llama(V, 24, 2, 6, 2, hidden_dim=40, max_seq_len=128, seed=3)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim == 2 else 1
    return model


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(0).integers(0, V, TOKENS + NEW + 1)


@pytest.fixture(scope="module")
def figures(model, text):
    return measure(model, text, TOKENS, NEW)


def test_every_cache_is_measured_and_the_model_is_as_before(figures, model):
    assert list(figures) == list(CACHES)
    assert not hasattr(model, "_kv_cache")
    for row in figures.values():
        assert row["bytes"] > 0 and row["ms_per_token"] > 0 and row["ms_over_plain"] > 0


def test_exact_caches_have_the_perplexity_of_the_model(figures, model, text):
    want = float(np.exp(next_token_loss(model, text[None]).data))
    for name in ("plain", "paged"):
        assert figures[name]["perplexity"] == pytest.approx(want, rel=1e-5)
        assert figures[name]["largest_logit_change"] < 1e-4 and figures[name]["same_choice"] == 1
    assert figures["plain"]["bytes"] == 2 * 2 * 2 * 4 * 4 * (TOKENS + NEW)  # k v, layers, heads, D, bytes


def test_smaller_caches_are_smaller_and_not_exact(figures):
    sizes = [figures[name]["bytes_over_plain"] for name in ("plain", "float16", "int8", "int4")]
    changes = [figures[name]["largest_logit_change"] for name in ("plain", "float16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 1
    assert changes == sorted(changes) and changes[1] > 0
    assert figures["window"]["bytes_over_plain"] < 0.3 and figures["window"]["same_choice"] < 1


def test_a_split_over_devices_is_that_of_dealing_out_its_parts():
    """Heads, layers and positions dealt out one by one; what a ring sends, link by link."""
    attention = SimpleNamespace(num_heads=9, num_kv_heads=3, head_dim=64)
    model = SimpleNamespace(blocks=[SimpleNamespace(attention=attention)] * 30, embed_dim=576)
    for d in (1, 2, 3, 4, 8):
        said = shards(model, 30 * 3 * 80, d)

        def dealt(parts, d=d):
            return max(sum(part % d == i for part in range(parts)) for i in range(d))

        assert said["heads"][0] == dealt(3) * 30 * 80
        assert said["layers"][0] == dealt(30) * 3 * 80
        assert said["tokens"][0] == -(-30 * 3 * 80 // d)
        ring = 2 * (d - 1) * 576 * 4 / d  # each device passes on 2 (d - 1) of d pieces of a sum
        assert said["heads"][1] == pytest.approx(30 * 2 * ring, abs=1)
        assert said["layers"][1] == (d - 1) * 576 * 4
        assert said["tokens"][1] == 30 * (d - 1) * 4 * (576 + 576 + 9 + 9)


def test_the_picture_is_drawn(figures, tmp_path):
    report = {"model": "a small Llama", "tokens": TOKENS, "caches": figures}
    draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_is_the_prose_of_the_lessons(tmp_path):
    words = course_prose(find_project(REPO))
    assert "# Module 15: The KV cache" in words and "import numpy" not in words and len(words) > 100_000
    with pytest.raises(TitoError, match="name a text with --text"):
        course_prose(None)


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_what_cannot_be_measured_is_said_in_one_sentence(monkeypatch, tmp_path, model):
    monkeypatch.setattr("tinytorch.tito.project.find_spec", lambda name: None)
    done = run()
    assert done.exit_code == 1 and "cache-report needs tokenizers: pip install -e '.[llm]'" in done.output
    tokenizer = SimpleNamespace(encode=lambda words: [ord(letter) % V for letter in words])
    monkeypatch.setattr(cache_report, "load_model", lambda path: (model, tokenizer))
    done = run("--tokens", "120", "--new", "9")
    assert done.exit_code == 1 and "120 and 9 tokens are too many, the model takes 128" in done.output
    short = tmp_path / "short.txt"
    short.write_text("twelve words")
    done = run("--tokens", "50", "--text", str(short))
    assert done.exit_code == 1 and "The text has 12 tokens, 99 are needed" in done.output


def test_the_figures_are_written_as_json(monkeypatch, tmp_path, model):
    tokenizer = SimpleNamespace(encode=lambda words: [ord(letter) % V for letter in words])
    monkeypatch.setattr(cache_report, "load_model", lambda path: (model, tokenizer))
    done = run("--tokens", "60", "--new", "3", "--output", str(tmp_path / "report.json"))
    assert done.exit_code == 0, done.output
    for name in CACHES:
        assert name in done.output
    assert "computed from the sizes, not measured" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tokens"] == 60 and list(report["caches"]) == list(CACHES)


@pytest.mark.llm
def test_smollm2_from_the_command_line(tmp_path):
    done = run("--tokens", "70", "--new", "2", "--picture", str(tmp_path / "p.png"))
    assert done.exit_code == 0, done.output
    assert "SmolLM2-135M-Instruct: 70 tokens read" in done.output and (tmp_path / "p.png").exists()
