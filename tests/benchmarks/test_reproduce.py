"""The paper's settings on small files in the official formats: what is read, what is trained, what is missing."""

import csv
import dataclasses
import functools
import itertools
import json
import pickle
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from benchmarks import reproduce, runner, store, tune
from benchmarks.__main__ import main
from benchmarks.reproduce import backbones, detection, generation, images, recommendation, understanding
from benchmarks.reproduce._common import TUNED, Files, Reproduction, microbatched, with_published

PAPER, DEFAULT = "GeN, Algorithm 1", "GeN, default of gen_optax"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def settings():
    """All of them, but of GLUE each task in one of the three ways, so that every way has two or three."""
    glue = [f"roberta_{way}_{task}" for task in understanding.TASKS for way in ("lora", "bitfit", "full")]
    left_out = {name for index, name in enumerate(glue) if index // 3 % 3 != index % 3}
    return [name for name in reproduce.known() if name not in left_out]


@pytest.mark.parametrize("name", settings())
def test_each_setting_trains(name, tmp_path, rng, capsys, monkeypatch):
    monkeypatch.setattr(images, "_SIDE", 64)
    monkeypatch.setattr(detection, "_SIDE", 64)
    data, weights = put_files(name, tmp_path, rng)
    setting = reproduce.get(name)
    specs = [setting.methods[PAPER]]
    if name in ("vit_base_cifar100", "roberta_full_mrpc"):  # the others differ in nothing that a rule sees
        specs += [setting.methods[DEFAULT], "baseline:learning_rate=0.001,schedule=linear"]
    given = [] if weights is None else ["--weights", str(weights)]
    length = ["--num-steps", "2", "--batch-size", "4"]
    options = ["--data", str(data), *given, "--results", str(tmp_path / "results"), "--seeds", "1", *length]
    main(["reproduce", name, *options, "--methods", *specs])
    (kept,) = (tmp_path / "results").iterdir()
    cells = {cell["key"]["method"]: cell for cell in store.Store(kept).cells()}
    assert set(cells) == set(specs)
    printed = capsys.readouterr().out
    for method, value in setting.published.items():
        assert f"| paper: {method} | {value:.4g} |" in printed
    for spec, cell in cells.items():
        assert cell.get("error") is None, cell["error"]
        assert cell["steps"] == 2
        assert np.isfinite(cell["final"]["test"]["loss"])
        value = cell["final"]["test"][cell["workload"]["metric"]]
        result = "1 diverged" if cell["diverged"] else f"{value:.4g} (1 seed)"
        assert f"| here: {spec} | {result} |" in printed
    assert setting.differs in printed
    assert "2 steps of 4 examples" in printed


def test_the_table_has_means_deviations_and_the_tuned_schedule(tmp_path, monkeypatch, capsys):
    setting = toy_setting(tmp_path)
    monkeypatch.setattr(reproduce, "known", lambda: {"toy": setting})
    monkeypatch.setattr(tune, "GRIDS", {"adamw": (-5, -4)})
    monkeypatch.setattr(tune, "_LIMITS", (-5, -4))
    main(["reproduce", "toy", "--data", str(tmp_path), "--results", str(tmp_path / "r"), "--num-steps", "12"])
    printed = capsys.readouterr().out
    (kept,) = (tmp_path / "r").iterdir()
    results = store.Store(kept)
    best = tune.choice(results, next(iter(results.cells()))["key"])["best"]
    found = {}
    for cell in results.cells():
        if cell["key"]["seed"] not in runner.TUNING_SEEDS:
            found.setdefault(cell["key"]["method"], []).append(cell["final"]["test"]["accuracy"])
    assert [len(values) for values in found.values()] == [3, 3]
    for label, method in (("default", "gen_horizon"), (f"tuned: {best}", best)):
        values = found[method]
        assert f"| here: {label} | {np.mean(values):.4g} ± {np.std(values, ddof=1):.2g} (3 seeds) |" in printed


def test_other_data_are_not_answered_by_the_cells_of_the_first(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(runner, "train", lambda key, *_: trained.append(key) or {"key": key, "diverged": False})

    def train(data):
        setting = toy_setting(data)
        cells = reproduce.run(setting, data, results=tmp_path / "r", specs=["momo"], seeds=[1], num_steps=2)
        assert [cell["key"]["method"] for cell in cells["momo"]] == ["momo"]
        return len(trained)

    first, second = (tmp_path / name for name in ("first", "second"))
    for folder in (first, second):
        folder.mkdir()
    assert (train(first), train(first)) == (1, 1)
    assert train(second) == 1  # the same files in another place
    (second / "points").write_text("others")
    assert (train(second), train(second)) == (2, 2)
    (first / "points").write_text("others")
    assert train(first) == 2
    assert {store.Store(kept).note("inputs")["data"] for kept in (tmp_path / "r").iterdir()} == {
        str(second.resolve()),
        str(first.resolve()),
    }


def test_the_fingerprint_is_of_contents_and_names(tmp_path):
    files = Files("some", ("folder", "file"))
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    seen = set()
    for path, text in (("file", "a"), ("folder/deep/b", "a"), ("folder/c", "a"), ("folder/c", "b"), ("file", "b")):
        (tmp_path / path).write_text(text)
        if (tmp_path / "file").exists():
            seen.add(files.fingerprint(tmp_path))
    (tmp_path / "folder" / "c").rename(tmp_path / "folder" / "d")
    seen.add(files.fingerprint(tmp_path))
    (tmp_path / "beside").write_text("a")
    assert files.fingerprint(tmp_path) in seen
    assert len(seen) == 6


def test_other_weights_are_other_inputs(tmp_path):
    setting = reproduce.get("bert4rec_ml1m")
    setting = dataclasses.replace(setting, data=Files("d", ("d",)), weights=Files("w", ("w",)))
    roots = []
    for name in ("one", "two", "one"):
        for file in ("d", "w"):
            (tmp_path / file).write_text(name if file == "w" else "")
        roots.append(reproduce._store(setting, tmp_path, tmp_path, tmp_path / "r").root)
    assert roots[0] == roots[2] != roots[1]


def test_a_run_that_fails_or_diverges_is_no_number():
    def cell(**changes):
        return {"workload": {"metric": "ap"}, "key": {"num_steps": 2, "batch_size": 1}, "diverged": False, **changes}

    good = cell(final={"test": {"ap": 0.5}})
    cells = {
        "lost": [good, cell(diverged=True, final={"test": {"ap": 0.1}})],
        "failed": [good, cell(error="out of memory", diverged=True)],
    }
    lines = list(reproduce.table(reproduce.get("detector_pennfudan"), cells))
    assert "| here: lost | 0.5 (1 seed), 1 diverged |" in lines
    assert "| here: failed | error: out of memory |" in lines


def test_without_a_name_everything_is_listed(capsys):
    main(["reproduce"])
    printed = capsys.readouterr().out
    for name, setting in reproduce.known().items():
        assert f"\n{name}: " in f"\n{printed}"
        assert all(path in printed for path in setting.data.paths)


@pytest.mark.parametrize(
    "name", ["resnet50_cifar100", "roberta_full_mnli", "gpt2_lora_e2e", "bert4rec_ml1m", "detector_pennfudan"]
)
def test_missing_files_are_named(name, tmp_path, rng):
    data, weights = put_files(name, tmp_path, rng)
    given = [] if weights is None else ["--weights", str(weights)]
    missing = data / reproduce.get(name).data.paths[-1]
    missing.rename(tmp_path / "away")
    said = f"No {re.escape(str(missing.relative_to(data)))} in {re.escape(str(data))}. Put there: "
    with pytest.raises(SystemExit, match=said):
        main(["reproduce", name, "--data", str(data), *given, "--results", str(tmp_path / "results")])
    (tmp_path / "away").rename(missing)
    if weights is not None:
        with pytest.raises(SystemExit, match=r"begins with .*Name their folder with --weights"):
            main(["reproduce", name, "--data", str(data)])
        (weights / "model.safetensors").unlink()
        with pytest.raises(SystemExit, match=r"No model\.safetensors in .*Put there: "):
            main(["reproduce", name, "--data", str(data), *given])


def test_what_makes_no_sense_is_said(tmp_path, rng):
    data, _ = put_files("bert4rec_ml1m", tmp_path, rng)
    with pytest.raises(SystemExit, match=r"trained from scratch\. Leave out --weights"):
        main(["reproduce", "bert4rec_ml1m", "--data", str(data), "--weights", str(tmp_path)])
    with pytest.raises(SystemExit, match="Unknown setting 'bert'"):
        main(["reproduce", "bert", "--data", str(data)])
    with pytest.raises(SystemExit, match="--data FOLDER"):
        main(["reproduce", "bert4rec_ml1m"])
    with pytest.raises(SystemExit, match="Unknown method 'adam'"):
        main(["reproduce", "bert4rec_ml1m", "--data", str(data), "--methods", "adam"])
    with pytest.raises(SystemExit, match="Seeds 1 to 100"):
        main(["reproduce", "bert4rec_ml1m", "--data", str(data), "--seeds", "0"])


def test_parts_of_a_batch_have_its_loss_and_gradient(rng):
    batch = {"x": rng.normal(size=(12, 3)).astype(np.float32)}

    def loss_fn(params, model_state, batch, key):
        return jnp.mean(jnp.sin(batch["x"] @ params) ** 2), {"seen": model_state["seen"] + len(batch["x"])}

    params, key = jnp.arange(3.0), jax.random.key(0)
    whole = jax.value_and_grad(loss_fn, has_aux=True)(params, {"seen": 0}, batch, key)
    for size, parts in ((5, 3), (4, 3), (100, 1), (1, 12)):
        sizes = []

        def seen(params, model_state, batch, key, sizes=sizes):
            sizes.append(len(batch["x"]))
            return loss_fn(params, model_state, batch, key)

        (loss, state), grads = jax.value_and_grad(microbatched(seen, size), has_aux=True)(
            params, {"seen": 0}, batch, key
        )
        assert set(sizes) == {12 // parts}
        assert state["seen"] == 12
        np.testing.assert_allclose(loss, whole[0][0], rtol=1e-6)
        np.testing.assert_allclose(grads, whole[1], rtol=1e-5)


def test_parts_of_a_batch_have_dropout_of_their_own():
    def loss_fn(params, model_state, batch, key):
        return jax.random.uniform(key), {"last": jax.random.uniform(key)}

    loss, state = microbatched(loss_fn, 1)(None, {"last": 0.0}, {"x": np.zeros(2)}, jax.random.key(0))
    assert abs(loss - state["last"]) > 1e-3


# Images.


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_as_it_was_written(classes, tmp_path, rng):
    written = put_cifar(tmp_path, classes, rng)
    splits = images.cifar_splits(tmp_path, classes)
    pictures, labels = written["test"]
    np.testing.assert_array_equal(splits["test"]["x"], pictures)
    assert splits["test"]["y"].tolist() == labels
    # The others are all there once, a quarter of them held out.
    pictures, labels = written["train"]
    assert len(splits["validation"]["y"]) == len(labels) // 4
    known = {picture.tobytes(): label for picture, label in zip(pictures, labels, strict=True)}
    for part in ("train", "validation"):
        for picture, label in zip(splits[part]["x"], splits[part]["y"], strict=True):
            assert known.pop(picture.tobytes()) == label
    assert not known


def test_a_batch_of_images_runs_no_code(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"no use for builtins\.print"):
        images.read_cifar([tmp_path / "data_batch_1"])


def test_images_are_enlarged_to_minus_one_to_one():
    module = images.Enlarged(Means(), side=8)
    x = np.zeros((2, 4, 4, 3), np.uint8)
    x[1] = 255
    np.testing.assert_allclose(module.apply({}, x, train=False), [[-1, 8], [1, 8]], rtol=1e-6)


def test_weights_of_a_resnet(rng):
    weights = resnet_weights(rng)
    module = backbones.ResNet(backbones.trunk_of(weights), 10)
    assert module.trunk.blocks == (1, 2, 1, 1)
    assert module.trunk.widths == (4, 5, 6, 7)
    variables = filled(module, weights, np.zeros((1, 32, 32, 3)))
    trunk = variables["params"]["trunk"]
    np.testing.assert_array_equal(
        trunk["layer2.1.conv2"]["kernel"][0, 1, 2, 3], weights["layer2.1.conv2.weight"][3, 2, 0, 1]
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["trunk"]["layer1.0.downsample.1"]["var"], weights["layer1.0.downsample.1.running_var"]
    )
    # All but the published head are used, and the new head is not filled.
    used = [leaf for leaf in jax.tree.leaves(variables) if np.any(leaf != 0)]
    assert len(used) == len(weights) - 2
    stages = jax.eval_shape(
        lambda: module.trunk.apply({k: v["trunk"] for k, v in variables.items()}, jnp.zeros((1, 64, 64, 3)), False)
    )
    assert [stage.shape[1:] for stage in stages] == [(16, 16, 16), (8, 8, 20), (4, 4, 24), (2, 2, 28)]

    with pytest.raises(ValueError, match=r"no array layer1\.0\.bn2\.bias: they are of another kind"):
        filled(module, {k: v for k, v in weights.items() if k != "layer1.0.bn2.bias"}, np.zeros((1, 32, 32, 3)))
    weights["bn1.weight"] = np.ones(9, np.float32)
    with pytest.raises(ValueError, match=r"bn1\.weight \(9,\) does not fit \(8,\)"):
        filled(module, weights, np.zeros((1, 32, 32, 3)))


def test_weights_of_a_vit(rng):
    weights = vit_weights(rng)
    module, side = backbones.vit_of(weights, 10)
    assert (module.patch, module.width, module.depth, module.num_heads, side) == (8, 16, 2, 1, 24)
    variables = filled(module, weights, np.zeros((1, 24, 24, 3)))
    np.testing.assert_array_equal(
        variables["params"]["blocks.1.attn.qkv"]["kernel"], weights["blocks.1.attn.qkv.weight"].T
    )
    np.testing.assert_array_equal(variables["params"]["pos_embed"], weights["pos_embed"])
    assert sum(bool(np.any(leaf != 0)) for leaf in jax.tree.leaves(variables)) == len(weights) - 2
    with pytest.raises(ValueError, match=r"no array conv1\.weight"):
        backbones.trunk_of(weights)


# Language.


@pytest.mark.parametrize("name", understanding.TASKS)
def test_glue_as_it_was_written(name, tmp_path):
    task = understanding.TASKS[name]
    written = put_glue(tmp_path, name)
    for file in ("train.tsv", *task.dev):
        assert list(understanding.read_glue(tmp_path / task.folder / file, task)) == written
    path = tmp_path / task.folder / "train.tsv"
    rows = path.read_bytes().count(b"\n")
    with open(path, "ab") as file:
        file.write(b"short\n")
    if task.skips_short_rows:
        assert list(understanding.read_glue(path, task)) == written
    else:
        with pytest.raises(ValueError, match=rf"train\.tsv, line {rows + 1}: no row of {task.folder}"):
            list(understanding.read_glue(path, task))


def test_another_task_in_the_folder_is_noticed(tmp_path):
    put_glue(tmp_path, "rte")
    with pytest.raises(ValueError, match="names no columns sentence, label: is it SST-2"):
        list(understanding.read_glue(tmp_path / "RTE" / "train.tsv", understanding.TASKS["sst2"]))


def test_tokens_of_pairs(tmp_path, rng):
    put_roberta(tmp_path, rng)
    path = tmp_path / "tokenizer.json"
    tokens = understanding.tokenize([("good film", "bad"), ("film", "good")], path, 512, pad=1)
    assert tokens.tolist() == [[0, 4, 6, 2, 2, 5, 2, 1], [0, 6, 2, 2, 4, 2, 1, 1]]
    assert understanding.tokenize(["good bad film"], path, 4, pad=1).tolist() == [[0, 4, 5, 2]]


def test_weights_of_roberta(tmp_path, rng):
    weights = put_roberta(tmp_path, rng, depth=2)
    module = understanding.roberta_of(tmp_path, 2)
    assert (module.width, module.depth, module.num_heads, module.max_length) == (16, 2, 2, 40)
    put_glue(tmp_path, "mrpc")
    params, _ = understanding.load("mrpc", "full", tmp_path, tmp_path).init(jax.random.key(0))
    np.testing.assert_array_equal(params["positions"], weights["roberta.embeddings.position_embeddings.weight"][2:])
    np.testing.assert_array_equal(params["norm"]["scale"], weights["roberta.embeddings.LayerNorm.weight"])
    np.testing.assert_array_equal(
        params["layer_1"]["value"]["kernel"], weights["roberta.encoder.layer.1.attention.self.value.weight"].T
    )


def test_weights_of_fewer_layers_are_noticed(tmp_path, rng):
    put_glue(tmp_path, "mrpc")
    weights = put_roberta(tmp_path, rng, depth=2)
    save({name: array for name, array in weights.items() if "layer.1." not in name}, tmp_path)
    with pytest.raises(
        ValueError, match=r"no array encoder\.layer\.1\.output\.dense\.bias, which config\.json implies"
    ):
        understanding.load("mrpc", "full", tmp_path, tmp_path).init(jax.random.key(0))


# Two adapters of two arrays; six dense layers and two norms, and the norm before them.
@pytest.mark.parametrize(("way", "kind", "expected"), [("lora", "lora_", 4), ("bitfit", "bias", 9), ("full", "", None)])
def test_what_each_way_trains(way, kind, expected, tmp_path, rng):
    put_roberta(tmp_path, rng)
    put_glue(tmp_path, "sst2")
    workload = understanding.load("sst2", way, tmp_path, tmp_path)
    if expected is None:
        assert workload.trainable is None
        return
    params, _ = workload.init(jax.random.key(0))
    chosen = {
        "/".join(k.key for k in path) for path, value in jax.tree.leaves_with_path(workload.trainable(params)) if value
    }
    heads = {"head/kernel", "head/bias", "head_hidden/kernel", "head_hidden/bias"}
    assert heads <= chosen
    assert all(kind in name for name in chosen - heads)
    assert len(chosen - heads) == expected


def test_padding_and_other_sentences_change_nothing(tmp_path, rng):
    put_roberta(tmp_path, rng)
    module = understanding.roberta_of(tmp_path, 3)
    tokens = np.array([[0, 4, 6, 2, 1, 1], [0, 4, 5, 6, 5, 2]], np.int32)
    variables = module.init(jax.random.key(0), tokens, train=False)
    both = module.apply(variables, tokens, train=False)
    alone = module.apply(variables, tokens[:1, :4], train=False)
    np.testing.assert_allclose(both[:1], alone, rtol=1e-5, atol=1e-6)


def test_metrics_of_glue():
    found, true = np.array([1, 1, 0, 1, 1]), np.array([1, 0, 0, 1, 1])
    assert understanding.accuracy(found, true) == pytest.approx(4 / 5)
    assert understanding.f1(found, true) == pytest.approx(6 / 7)
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) with TP = 3, FP = 1, FN = 0, TN = 1.
    assert understanding.matthews(found, true) == pytest.approx(3 / 24**0.5)
    assert understanding.matthews(np.ones(3), np.array([0, 1, 1])) == 0
    assert understanding.f1(np.zeros(3), np.zeros(3)) == 0


# Generation.


def test_e2e_as_it_was_written(tmp_path):
    rows = [("name[Zizzi], food[Thai]", 'Zizzi is "good",\r\nand Thai.'), ("name[Café], food[Thai]", "A café.")]
    for number, encoding in enumerate(("utf-8", "utf-8-sig")):
        path = tmp_path / f"{number}.csv"
        write_e2e(path, rows, encoding)
        assert generation.read_e2e(path) == rows
    with open(path, "a") as file:
        file.write("name[Zizzi]\n")
    with pytest.raises(ValueError, match=r"1\.csv, line 5: no meaning representation with its reference"):
        generation.read_e2e(path)
    path.write_text("MR,ref\nname[Zizzi],Zizzi.\n")
    with pytest.raises(ValueError, match=r"1\.csv names no columns mr, ref: is it a file of E2E"):
        generation.read_e2e(path)
    path.write_text("")
    with pytest.raises(ValueError, match="names no columns mr, ref"):
        generation.read_e2e(path)


def test_references_are_grouped_by_what_they_mean(tmp_path, rng, monkeypatch):
    rows = [("a", "one"), ("b", "two"), ("a", "three"), ("c", "four"), ("b", "five")]
    assert generation.grouped(rows) == {"a": ["one", "three"], "b": ["two", "five"], "c": ["four"]}

    # What is written is the meaning itself here: so it is right where one of the references is.
    def repeat(log_probs, prompt, length, end, **settings):
        assert settings == {"width": 10, "penalty": 0.8, "steps": 64}
        return jnp.pad(prompt, 4, constant_values=end)

    monkeypatch.setattr(generation, "beam_search", repeat)
    data, weights = put_files("gpt2_lora_e2e", tmp_path, rng)
    thai, fish = "Good Thai food in a pub.", "Nice and cheap fish here."
    write_e2e(data / "devset.csv", [(thai, "never so"), (fish, fish), (thai, thai)])
    write_e2e(data / "testset_w_refs.csv", [(thai, "never so"), (fish, fish), (thai, "nor so")])
    workload = generation.load(data, weights)
    params, model_state = workload.init(jax.random.key(0))
    assert workload.evaluate(params, model_state, "validation")["bleu"] == pytest.approx(100)
    assert workload.evaluate(params, model_state, "test")["bleu"] < 90


def test_bleu_counts_all_references():
    assert generation.bleu(["a b c d e", "f g h i j"], [["x", "a b c d e"], ["f g h i J"]]) == pytest.approx(100)
    # All that is there is right, and four words stand beside five at least: exp(1 - 5/4).
    assert generation.bleu(["a b c d"], [["a b c d e f", "a b c d e"]]) == pytest.approx(100 * np.exp(-1 / 4))


def test_a_text_is_meaning_separator_reference_and_end(tmp_path, rng):
    put_gpt2(tmp_path, rng)
    path = tmp_path / "tokenizer.json"
    end = generation.end_of(path)
    texts = generation.texts_of([("ab[c]", "de f"), ("abcdefgh", "i")])
    assert texts == ["ab[c]<|endoftext|> de f<|endoftext|>", "abcdefgh<|endoftext|> i<|endoftext|>"]
    tokens = generation.tokenize(texts, path, 12, end)
    assert tokens[0].tolist() == [*encoded(path, "ab[c]"), end, *encoded(path, " de f"), end]
    assert tokens[1].tolist() == [*encoded(path, "abcdefgh"), end, *encoded(path, " i"), end]
    prompts = generation.prompts_of(["ab[c]", "abcdefghij"], path, 8, end)
    assert prompts["length"].tolist() == [6, 8]
    assert prompts["x"].tolist() == [[*encoded(path, "ab[c]"), end, end, end], [*encoded(path, "abcdefg"), end]]
    written = np.array([[*encoded(path, " de f"), end, end], [end] * 7])
    assert generation.decode(written, path) == ["de f", ""]
    path.write_text(path.read_text().replace("<|endoftext|>", "</s>"))
    with pytest.raises(ValueError, match=r"tokenizer\.json has no token <\|endoftext\|>: is it GPT-2's"):
        generation.end_of(path)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_of_gpt2(prefix, tmp_path, rng):
    data, folder = put_files("gpt2_lora_e2e", tmp_path, rng)
    weights = put_gpt2(folder, rng, prefix=prefix)
    params, _ = generation.load(data, folder).init(jax.random.key(0))
    module = generation.gpt2_of(folder)
    tokens = rng.integers(0, module.vocabulary, (2, 7))
    expected = logits_of_gpt2(weights, tokens)
    # The adapters do nothing at first, so their dropout does nothing, and there is no other one.
    for train in (False, True):
        logits = module.apply({"params": params}, tokens, train=train, rngs={"dropout": jax.random.key(0)})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        module.apply({"params": params}, tokens, train=False, at=4), expected[:, 4], rtol=1e-4, atol=1e-4
    )
    # Adapters that do something are the same as other weights of queries and values.
    width = module.width
    for index in range(module.depth):
        attention = weights[f"h.{index}.attn.c_attn.weight"] = weights[f"h.{index}.attn.c_attn.weight"].copy()
        for name, part in (("query", 0), ("value", 2)):
            down, up = (params[f"h.{index}"][f"lora_{name}_{side}"] for side in ("down", "up"))
            assert down["kernel"].shape == (width, 4)
            up["kernel"] = rng.normal(size=(4, width)).astype(np.float32) / 8
            attention[:, part * width : (part + 1) * width] += 32 / 4 * down["kernel"] @ up["kernel"]
    adapted = module.apply({"params": params}, tokens, train=False)
    np.testing.assert_allclose(adapted, logits_of_gpt2(weights, tokens), rtol=1e-3, atol=1e-3)
    dropped = module.apply({"params": params}, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - adapted).max() > 0.01


def test_other_weights_than_those_of_gpt2_are_noticed(tmp_path, rng):
    data, folder = put_files("gpt2_lora_e2e", tmp_path, rng)
    weights = put_gpt2(folder, rng)
    init = generation.load(data, folder).init
    save({**weights, "h.1.mlp.c_fc.weight": np.zeros((64, 16), np.float32)}, folder)
    with pytest.raises(ValueError, match=r"h\.1\.mlp\.c_fc\.weight \(64, 16\) does not fit \(16, 64\)"):
        init(jax.random.key(0))
    save({name: array for name, array in weights.items() if name != "h.1.ln_2.bias"}, folder)
    with pytest.raises(ValueError, match=r"no array h\.1\.ln_2\.bias, which config\.json implies"):
        init(jax.random.key(0))


def test_gpt2_trains_adapters_only(tmp_path, rng):
    workload = generation.load(*put_files("gpt2_lora_e2e", tmp_path, rng))
    params, _ = workload.init(jax.random.key(0))
    chosen = {
        "/".join(k.key for k in path) for path, value in jax.tree.leaves_with_path(workload.trainable(params)) if value
    }
    assert chosen == {
        f"h.{index}/lora_{name}_{side}/kernel"
        for index in range(2)
        for name in ("query", "value")
        for side in ("down", "up")
    }


def test_the_loss_is_of_reference_tokens(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(generation, "_MICROBATCH", 2)
    data, folder = put_files("gpt2_lora_e2e", tmp_path, rng)
    rows = [("a[b]", "cd"), ("ab", "a longer text, this"), ("abcdefgh", ""), ("b", "c"), ("abc[d]", "ef g")]
    for file in ("trainset.csv", "devset.csv"):
        write_e2e(data / file, rows)
    weights = put_gpt2(folder, rng)
    workload = generation.load(data, folder)
    params, model_state = workload.init(jax.random.key(0))
    path = folder / "tokenizer.json"
    end = generation.end_of(path)
    plain, smooth = [], []
    for meaning, reference in rows:
        before, after = [*encoded(path, meaning), end], [*encoded(path, f" {reference}"), end]
        logits = logits_of_gpt2(weights, np.array([before + after]))[0]
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for place, token in enumerate(after, len(before) - 1):
            plain.append(-log_probs[place, token])
            smooth.append(-0.9 * log_probs[place, token] - 0.1 * log_probs[place].mean())
    found = workload.evaluate(params, model_state, "validation")["loss"]
    assert found == pytest.approx(np.mean(plain), rel=1e-5)
    # Parts of a batch have different numbers of tokens; the mean is over all of them.
    loss, _ = workload.loss_fn(params, model_state, next(workload.batches(0, len(rows))), jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean(smooth), rel=1e-5)


@functools.partial(jax.jit, static_argnames=("width", "penalty", "steps"))
def search(table, prompt=(0,), length=1, *, width, penalty=0.0, steps=4):
    """By a network that knows the probabilities of the next token from the last one; token 3 ends."""

    def log_probs(tokens, at):
        return jnp.log(table)[tokens[:, at]]

    prompt, settings = jnp.asarray(prompt), {"width": width, "penalty": penalty, "steps": steps}
    return generation.beam_search(log_probs, prompt, length, 3, **settings)


MISSED = np.array([[0.0, 0.6, 0.4, 0.0], [0.4, 0.2, 0.2, 0.2], [0.05, 0.0, 0.05, 0.9], [0.25] * 4])


def test_a_beam_of_one_is_greedy(rng):
    assert search(MISSED, width=1).tolist() == [1, 0, 1, 0]
    ends = 0
    for _ in range(10):
        table = rng.dirichlet(np.ones(4), size=4)
        greedy, last = [], 0
        while len(greedy) < 6 and last != 3:
            last = int(np.argmax(table[last]))
            greedy.append(last)
        assert search(table, width=1, steps=6).tolist() == greedy + [3] * (6 - len(greedy))
        ends += last == 3
    assert 0 < ends < 10


def test_a_beam_finds_what_greedy_misses():
    assert search(MISSED, width=2).tolist() == [2, 3, 3, 3]
    # Where the prompt is and what pads it changes nothing.
    prompt = np.array([2, 1, 0, 3, 3])
    assert search(MISSED, prompt, 3, width=2).tolist() == [2, 3, 3, 3]


@pytest.mark.parametrize("penalty", [0.0, 0.8, 2.0])
def test_a_wide_beam_finds_the_best_of_all(penalty, rng):
    lengths = set()
    for _ in range(40):
        table = rng.dirichlet(np.ones(4), size=4)
        best, best_score = None, -np.inf
        for tokens in itertools.product(range(4), repeat=4):
            count = tokens.index(3) + 1 if 3 in tokens else 4
            path = (0, *tokens[:count])
            score = sum(np.log(table[a, b]) for a, b in itertools.pairwise(path)) / count**penalty
            if score > best_score:
                best, best_score = [*tokens[:count], *[3] * (4 - count)], score
        assert search(table, width=256, penalty=penalty).tolist() == best
        lengths.add(best.index(3) if 3 in best else 4)
    assert len(lengths) > 1


def test_the_network_is_asked_what_follows(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(generation, "_WIDTH", 1)
    monkeypatch.setattr(generation, "_NEW", 6)
    data, folder = put_files("gpt2_lora_e2e", tmp_path, rng)
    weights = put_gpt2(folder, rng)
    workload = generation.load(data, folder)
    params, model_state = workload.init(jax.random.key(0))
    written = []
    monkeypatch.setattr(generation, "decode", lambda tokens, _: written.extend(tokens.tolist()) or [""] * len(tokens))
    workload.evaluate(params, model_state, "test")
    path = folder / "tokenizer.json"
    end = generation.end_of(path)
    meanings = list(generation.grouped(generation.read_e2e(data / "testset_w_refs.csv")))
    assert len(meanings) == len(written) == 6
    for meaning, found in zip(meanings, written, strict=True):
        tokens = [*encoded(path, meaning), end]
        for _ in range(6):
            ended = len(tokens) > len(encoded(path, meaning)) + 1 and tokens[-1] == end
            tokens.append(end if ended else int(np.argmax(logits_of_gpt2(weights, np.array([tokens]))[0, -1])))
        assert found == tokens[-6:]


def test_a_network_of_nan_writes_nothing():
    assert search(np.full((4, 4), np.nan), width=2).tolist() == [3, 3, 3, 3]


# Recommendation.


def test_ratings_as_they_were_written(tmp_path):
    rows = ["2::30::3::900", "1::10::5::800", *(f"1::{film}::1::{700 + film}" for film in (50, 20, 40, 30))]
    (tmp_path / "ratings.dat").write_text("\n".join(rows) + "\n")
    # Films 10 to 50 are numbers 1 to 5; the second person has rated too few.
    (history,) = recommendation.read_ratings(tmp_path / "ratings.dat")
    assert history.tolist() == [2, 3, 4, 5, 1]


def test_films_to_rank_among_were_never_rated():
    histories = [np.array([1, 2, 3]), np.array([4, 5, 6])]
    others = recommendation.others_of(histories, 200)
    assert others.shape == (2, 100)
    for history, row in zip(histories, others, strict=True):
        assert len(set(row.tolist())) == 100
        assert not set(row.tolist()) & set(history.tolist())
        assert 1 <= row.min() <= row.max() <= 200
    assert recommendation.others_of([np.arange(1, 8)], 10).shape == (1, 3)


def test_hidden_films_are_what_is_asked_for(rng):
    items = np.zeros((3, 100), np.int32)
    items[0, 60:], items[1], items[2, -1] = np.arange(1, 41), np.arange(1, 101), 7
    batch = recommendation.hide(items, 500, rng)
    assert batch["weights"].sum(axis=1).tolist() == [6, 15, 1]
    for row in range(3):
        asked = batch["gaps"][row][batch["weights"][row] > 0]
        assert np.all(batch["items"][row, asked] == 500)
        np.testing.assert_array_equal(batch["targets"][row][batch["weights"][row] > 0], items[row, asked])
        assert np.sum(batch["items"][row] != items[row]) == len(asked)


def test_a_rank_among_the_others_decides(tmp_path, rng):
    put_ratings(tmp_path, rng)
    workload = recommendation.load(tmp_path)
    params, model_state = workload.init(jax.random.key(0))
    # A network that says nothing has ties only, which count against it.
    nothing = workload.evaluate(jax.tree.map(jnp.zeros_like, params), model_state, "test")
    assert nothing["recall@20"] == 0
    histories = recommendation.read_ratings(tmp_path / "ml-1m" / "ratings.dat")
    last = histories[0][-1]
    known = {**jax.tree.map(jnp.zeros_like, params), "bias": jnp.zeros_like(params["bias"]).at[last].set(1.0)}
    share = np.mean([history[-1] == last for history in histories])
    assert workload.evaluate(known, model_state, "test")["recall@1"] == pytest.approx(share)


# Detection.


def test_penn_fudan_as_it_was_written(tmp_path, rng):
    written = put_penn_fudan(tmp_path, rng)
    read = detection.read_penn_fudan(tmp_path / "PennFudanPed", 32)
    assert read["image"].shape == (len(written), 32, 32, 3)
    assert (read["labels"] >= 0).sum(axis=1).tolist() == [len(boxes) for boxes in written]
    for row, boxes in enumerate(written):
        # Photographs are 64 wide and 48 high: half as large, and nothing below.
        np.testing.assert_allclose(read["boxes"][row, : len(boxes)], np.array(boxes) / 2)
        assert not read["image"][row, 24:].any()
        assert read["image"][row, :24].any()
    path = tmp_path / "PennFudanPed" / "Annotation" / "FudanPed00001.txt"
    path.write_text(path.read_text().replace("truth : 2", "truth : 3"))
    with pytest.raises(ValueError, match="counts 3 pedestrians, and its mask has 2"):
        detection.read_penn_fudan(tmp_path / "PennFudanPed", 32)
    for path in (tmp_path / "PennFudanPed" / "Annotation").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="No text files in"):
        detection.read_penn_fudan(tmp_path / "PennFudanPed", 32)


def test_mirrored_images_have_mirrored_boxes(rng):
    image = np.zeros((20, 8, 8, 3), np.uint8)
    image[:, 2:4, 1:4] = 9
    boxes = np.zeros((20, 2, 4), np.float32)
    boxes[:, 0] = (2, 1, 4, 4)
    labels = np.tile(np.array([0, -1], np.int32), (20, 1))
    batch = detection.mirrored({"image": image, "boxes": boxes, "labels": labels}, rng)
    columns = set()
    for picture, box in zip(batch["image"], batch["boxes"], strict=True):
        rows, there = np.nonzero(picture[..., 0])
        assert box[0].tolist() == [rows.min(), there.min(), rows.max() + 1, there.max() + 1]
        assert not box[1].any()
        columns.add(int(there.min()))
    assert columns == {1, 4}


def test_the_detector_keeps_the_statistics_of_its_weights(tmp_path, rng):
    data, weights = put_files("detector_pennfudan", tmp_path, rng)
    workload = detection.load(data, weights)
    params, model_state = workload.init(jax.random.key(0))
    batch = next(workload.batches(1, 2))
    _, after = workload.loss_fn(params, model_state, batch, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, after, model_state)
    assert "trunk" in model_state["batch_stats"]


# Small files in the official formats.


def put_files(name, folder, rng):
    """The folders of the data and of the weights."""
    data, weights = folder / "data", folder / "weights"
    data.mkdir()
    weights.mkdir()
    kind, _, rest = name.partition("_")
    if kind == "bert4rec":
        put_ratings(data, rng)
        return data, None
    if kind == "roberta":
        put_glue(data, rest.split("_")[1])
        put_roberta(weights, rng)
        return data, weights
    if kind == "gpt2":
        put_e2e(data)
        put_gpt2(weights, rng)
        return data, weights
    if kind == "detector":
        put_penn_fudan(data, rng)
    else:
        put_cifar(data, int(name.rpartition("cifar")[2]), rng)
    save(vit_weights(rng) if kind == "vit" else resnet_weights(rng), weights)
    return data, weights


class Python2(pickle._Pickler):
    """Pickles strings and bytes as Python 2 did, whose pickles the official batches are."""

    def save_string(self, value):
        value = value if isinstance(value, bytes) else value.encode("latin-1")
        short = len(value) < 256
        self.write((b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def put_cifar(folder, classes, rng):
    """The images `[n, 32, 32, 3]` and labels that the two parts have."""
    files = {10: {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}}
    files[100] = {"train": ["train"], "test": ["test"]}
    folder = folder / {10: "cifar-10-batches-py", 100: "cifar-100-python"}[classes]
    folder.mkdir()
    written = {}
    for part, names in files[classes].items():
        pictures, labels = [], []
        for name in names:
            count = 20 // len(names)
            rows = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
            numbers = rng.integers(0, classes, count).tolist()
            about = {"labels": numbers} if classes == 10 else {"fine_labels": numbers, "coarse_labels": [0] * count}
            with open(folder / name, "wb") as file:
                Python2(file, 2).dump({"batch_label": name, "data": rows, **about})
            text = (folder / name).read_bytes()
            assert b"numpy._core.multiarray" in text or b"numpy.core.multiarray" in text
            (folder / name).write_bytes(text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
            red, green, blue = rows[:, :1024], rows[:, 1024:2048], rows[:, 2048:]
            pictures += [np.stack(planes, axis=-1).reshape(32, 32, 3) for planes in zip(red, green, blue, strict=True)]
            labels += numbers
        written[part] = (np.stack(pictures), labels)
    return written


def save(weights, folder):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / "model.safetensors")


def resnet_weights(rng):
    """Of a small ResNet, as timm and torchvision name them, head included."""
    weights = {}

    def add(convolution, norm, width, width_in, kernel):
        shape = (width, width_in, kernel, kernel)
        weights[f"{convolution}.weight"] = (rng.normal(size=shape) / np.sqrt(width_in * kernel**2)).astype(np.float32)
        for name in ("weight", "bias", "running_mean"):
            weights[f"{norm}.{name}"] = rng.normal(size=width).astype(np.float32) / 4
        weights[f"{norm}.running_var"] = rng.uniform(1, 2, width).astype(np.float32)

    add("conv1", "bn1", 8, 3, 7)
    width_in = 8
    for stage, (blocks, width) in enumerate(zip((1, 2, 1, 1), (4, 5, 6, 7), strict=True), 1):
        for index in range(blocks):
            name = f"layer{stage}.{index}."
            add(f"{name}conv1", f"{name}bn1", width, width_in, 1)
            add(f"{name}conv2", f"{name}bn2", width, width, 3)
            add(f"{name}conv3", f"{name}bn3", 4 * width, width, 1)
            if index == 0:
                add(f"{name}downsample.0", f"{name}downsample.1", 4 * width, width_in, 1)
            width_in = 4 * width
    return {**weights, "fc.weight": np.ones((9, 28), np.float32), "fc.bias": np.ones(9, np.float32)}


def vit_weights(rng):
    """Of a small ViT, as timm names them, head included."""
    width, patch, shapes = 16, 8, {}
    shapes |= {"cls_token": (1, 1, width), "pos_embed": (1, 10, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for index in range(2):
        name = f"blocks.{index}."
        dense = {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (64, 16), "mlp.fc2": (16, 64)}
        for layer, shape in dense.items():
            shapes |= {f"{name}{layer}.weight": shape, f"{name}{layer}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{name}{norm}.weight": (width,), f"{name}{norm}.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (9, width), "head.bias": (9,)}
    return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def put_roberta(folder, rng, depth=1):
    """A folder in the format of Hugging Face; returns the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 42, "pad_token_id": 1, "layer_norm_eps": 1e-5, "hidden_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "good": 4, "bad": 5, "film": 6, "<mask>": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    shapes = {"embeddings.word_embeddings.weight": (8, 16), "embeddings.position_embeddings.weight": (42, 16)}
    shapes |= {"embeddings.token_type_embeddings.weight": (1, 16)}
    dense = {f"attention.self.{name}": (16, 16) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (16, 16), "intermediate.dense": (64, 16), "output.dense": (16, 64)}
    norms = ["embeddings.LayerNorm"]
    for index in range(depth):
        name = f"encoder.layer.{index}."
        for layer, shape in dense.items():
            shapes |= {f"{name}{layer}.weight": shape, f"{name}{layer}.bias": shape[:1]}
        norms += [f"{name}attention.output.LayerNorm", f"{name}output.LayerNorm"]
    shapes |= {f"{norm}.{leaf}": (16,) for norm in norms for leaf in ("weight", "bias")}
    weights = {f"roberta.{name}": rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    weights["lm_head.bias"] = np.zeros(8, np.float32)
    save(weights, folder)
    return weights


def write_e2e(path, rows, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([("mr", "ref"), *rows])


def put_e2e(folder):
    rows = [
        (f"name[{name}], food[{food}]", text.format(name, food))
        for text in ("{} has {} food.", "Try the {1} dishes of {0}!")
        for name in ("Zizzi", "Café Sicilia", "The Vaults")
        for food in ("Thai", "French")
    ]
    for file in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        write_e2e(folder / file, rows, "utf-8-sig" if file == "devset.csv" else "utf-8")


def put_gpt2(folder, rng, prefix=""):
    """A folder in the format of Hugging Face; returns the weights, without the prefix and the masks that some have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": 257, "n_positions": 144, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config |= {"layer_norm_epsilon": 1e-3, "activation_function": "gelu_new", "resid_pdrop": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"wte.weight": (257, 16), "wpe.weight": (144, 16)}
    dense = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16)}
    norms = ["ln_f", *(f"h.{index}.{norm}" for index in range(2) for norm in ("ln_1", "ln_2"))]
    for name, shape in ((f"h.{index}.{name}", shape) for index in range(2) for name, shape in dense.items()):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    shapes |= {f"{norm}.{leaf}": (16,) for norm in norms for leaf in ("weight", "bias")}
    weights = {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    masks = {f"{prefix}h.{index}.attn.bias": np.tril(np.ones((1, 1, 144, 144), np.float32)) for index in range(2)}
    save({**{f"{prefix}{name}": array for name, array in weights.items()}, **masks}, folder)
    return weights


def logits_of_gpt2(weights, tokens, heads=2, epsilon=1e-3):
    """GPT-2 in NumPy, one head and one text at a time."""

    def dense(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attended(query, key, value):
        scores = np.exp(query @ key.T / np.sqrt(query.shape[-1])) * np.tri(len(query))
        return scores / scores.sum(axis=-1, keepdims=True) @ value

    texts = []
    for text in tokens:
        x = weights["wte.weight"][text] + weights["wpe.weight"][: len(text)]
        for name in sorted({name[:3] for name in weights if name.startswith("h.")}):
            parts = [
                np.split(part, heads, axis=-1)
                for part in np.split(dense(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn"), 3, axis=-1)
            ]
            x = x + dense(
                np.concatenate([attended(*head) for head in zip(*parts, strict=True)], axis=-1), f"{name}.attn.c_proj"
            )
            y = dense(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
            x = x + dense(y, f"{name}.mlp.c_proj")
        texts.append(norm(x, "ln_f") @ weights["wte.weight"].T)
    return np.stack(texts)


def encoded(path, text):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).encode(text).ids


GLUE_ROWS = {  # the first line of the official file, if it names columns, and a row with texts and label left open
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "{i}\t3p\t3n\tfiction\t( a )\t( b )\t(ROOT)\t(ROOT)\t{0}\t{1}\tneutral\t{label}",
    ),
    "sst2": ("sentence\tlabel", "{0}\t{label}"),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t702876\t702977\t{0}\t{1}"),
    "cola": (None, "gj04\t{label}\t*\t{0}"),
    "qnli": ("index\tquestion\tsentence\tlabel", "{i}\t{0}\t{1}\t{label}"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{i}\t213\t214\t{0}\t{1}\t{label}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "{i}\t{0}\t{1}\t{label}"),
}


def put_glue(folder, name):
    """The texts and classes of each of the files, which are alike."""
    task = understanding.TASKS[name]
    header, row = GLUE_ROWS[name]
    words = ['a "good film', "bad\rfilm", "film good good film", "naïve, bad film"]
    rows, lines = [], [] if header is None else [header]
    for index in range(24):
        texts = tuple(words[(index + shift) % 4] for shift in range(len(task.texts)))
        label = index % len(task.labels)
        rows.append((texts, label))
        lines.append(row.format(*texts, i=index, label=task.labels[label]))
    (folder / task.folder).mkdir()
    for file in ("train.tsv", *task.dev):
        (folder / task.folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return rows


def put_ratings(folder, rng):
    (folder / "ml-1m").mkdir()
    lines = [
        f"{user}::{film}::{rng.integers(1, 6)}::{978300760 + place}"
        for user in range(1, 13)
        for place, film in enumerate(rng.permutation(np.arange(10, 160))[: rng.integers(6, 20)])
    ]
    (folder / "ml-1m" / "ratings.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")


def put_penn_fudan(folder, rng):
    """The boxes top, left, bottom, right of each image, one or two pedestrians in each."""
    from PIL import Image

    folder = folder / "PennFudanPed"
    for name in ("Annotation", "PNGImages", "PedMasks"):
        (folder / name).mkdir(parents=True)
    written = []
    for number in range(1, 13):
        name = f"FudanPed{number:05}"
        mask = np.zeros((48, 64), np.uint8)
        boxes = []
        for person in range(1, 2 + number % 2):
            top, left = rng.integers(4, 20), 4 + 30 * (person - 1)
            boxes.append([top, left, top + 20, left + 12])
            mask[top : top + 20, left : left + 12] = person
        lines = [f'Image filename : "PennFudanPed/PNGImages/{name}.png"', "Image size (X x Y x C) : 64 x 48 x 3"]
        lines.append(f'Objects with ground truth : {len(boxes)} {{ "PASpersonWalking" }}')
        (folder / "Annotation" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        Image.fromarray(mask).save(folder / "PedMasks" / f"{name}_mask.png")
        picture = rng.integers(30, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "PNGImages" / f"{name}.png")
        written.append(boxes)
    return written


def filled(module, weights, example):
    """Variables of a network, zero but for the published weights."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), example, train=False))
    return with_published(jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes), weights)


def Means():
    import flax.linen as nn

    class Module(nn.Module):
        """The mean of an image, and its side."""

        @nn.compact
        def __call__(self, x, train):
            return jnp.stack([x.mean(axis=(1, 2, 3)), jnp.full(len(x), x.shape[1])], axis=1)

    return Module()


def toy_setting(folder):
    (folder / "points").touch()
    return Reproduction(
        name="toy",
        about="two clouds",
        data=Files("points", ("points",)),
        weights=None,
        published={"GeN": 0.9},
        methods={"default": "gen_horizon", "tuned": TUNED},
        load=lambda data, weights: toy(),
        differs="It is a toy.",
    )
