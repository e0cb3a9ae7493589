import json

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from bundle.run.command import (
    BUNDLE_ROOT,
    Command,
    UnknownOverrideError,
    arguments_from_anywhere,
    check_overrides,
    merge_configs,
    path_for_monai,
    plain_path_for_monai,
)

CONFIG = {
    "bundle_root": ".",
    "max_epochs": 5,
    "learning_rate": 1e-4,
    "halo": 44,
    "init_from": None,
    "patch_size": [128, 128, 128],
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8]},
    "train": {"handlers": [{"_target_": "StatsHandler", "name": "log"}], "amp": True},
    "copy": {"_target_": "dict", "epochs": "@max_epochs"},
    "run": [{"_target_": "print", "max_epochs": "@max_epochs"}],
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(config_file):
    return lambda *words: Command(["--config_file", config_file, *words])


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["--max_epochs", "9"], {"max_epochs": 9}),
        (["--max-epochs=9"], {"max_epochs": 9}),
        (["--learning_rate", "1e-5", "--halo", "-4"], {"learning_rate": 1e-5, "halo": -4}),
        (["--patch_size", "[64, 64,64]"], {"patch_size": [64, 64, 64]}),
        (["--train::amp"], {"train::amp": True}),
        (["--dataset_dir", "a b/c", "--dataset_dir", "d"], {"dataset_dir": "d"}),
        (
            ["--dataset-dir=2024_01", "--output_dir", "20240101"],
            {"dataset_dir": "2024_01", "output_dir": "20240101"},
        ),
        (["--init_from", "a,b", "--cache_dir", "0x10"], {"init_from": "a,b", "cache_dir": "0x10"}),
        (["--ckpt_path", "data#1", "--source_dir", "1e5"], {"ckpt_path": "data#1", "source_dir": "1e5"}),
        (["--output_dir", "'a b'", "--dataset_dir"], {"output_dir": "a b", "dataset_dir": True}),
        (["training", "--meta_file", "m.json", "--tracking", "mlflow", "--workflow_type", "train"], {}),
    ],
)
def test_words_are_read_as_fire_reads_them(command, words, overrides):
    assert command(*words).overrides == overrides


@pytest.mark.parametrize("path", ["data#1", "a#b@c/it's #1", 'x"#\\n', "a,b", "2024_01"])
def test_monai_reads_a_path_as_it_was_typed(path):
    parser = ConfigParser({"dataset_dir": path_for_monai(path), "c": "not this"})

    assert parser.get_parsed_content("dataset_dir") == path


@pytest.mark.parametrize(
    "path",
    ["$1 / 0", "@c", "%/etc/passwd", "a%::c", "a@::c", "$#@%'\"\\n", "data#1", "a,b", "\udcff", "plain"],
)
def test_a_path_of_a_program_is_never_an_expression(path):
    parser = ConfigParser({"c": "not this"})
    parser["output_dir"] = plain_path_for_monai(path)
    parser["inside"] = {"c": "nor this", "path": "@output_dir"}

    assert parser.get_parsed_content("output_dir") == path
    assert parser.get_parsed_content("inside::path") == path


def test_a_word_of_old_tutorials_is_refused_where_no_config_has_such_an_id(command):
    with pytest.raises(UnknownOverrideError, match="holds no id `training` to run; leave that word out"):
        check_overrides(command("training"))
    check_overrides(command("run"))


def test_a_config_beside_the_file_of_arguments_that_names_it_is_found(tmp_path, config_file, monkeypatch):
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": "train.json"}), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    added = arguments_from_anywhere(Command(["--args_file", str(args)]))

    assert Command(added).config_files == [config_file]


def test_a_file_of_arguments_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match="gone.json: no such config file; .* `args_file`"):
        Command(["--args_file", "gone.json"])


def test_args_file_gives_defaults_that_the_command_line_beats(tmp_path, config_file):
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": config_file, "max_epochs": 7, "halo": 1}), encoding="utf-8")

    command = Command(["--args_file", str(args), "--halo", "2"])

    assert command.config_files == [config_file]
    assert command.overrides == {"max_epochs": 7, "halo": 2}


@pytest.mark.parametrize(
    "words",
    [
        ["--max_epochs", "9"],
        ["--patch_size#0", "64"],
        ["--train::handlers::0::name", "other"],
        ["--inferer#overlap", "0.5"],
        ["--train::handlers::0::_disabled_", "True"],
        ["--_meta_::version", "2"],
        ["--tracking", "mlflow", "--experiment_name", "study"],
        ["--init_from", "None"],
        ["--halo", "$None"],
    ],
)
def test_overrides_that_monai_obeys_are_accepted(command, words):
    check_overrides(command(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maxepochs", "9"], r"`maxepochs` .did you mean `max_epochs`\?\)$"),
        (["--lr", "1"], "`lr` .did you mean `learning_rate`"),
        (["--roi_size", "[9,9,9]"], "`roi_size` .did you mean `inferer::roi_size`"),
        (["--train#apm", "False"], "`train::apm` .did you mean `train::amp`"),
        (["--patch_size::3", "8"], "`patch_size::3`"),
        (["--halo::x", "8"], "`halo::x` .did you mean `halo`"),
        (["--experiment_name", "study"], "`experiment_name` .nothing like it there"),
        (["--zzz", "None"], "`zzz`"),
        (
            ["--inferer::roi_size", "[9,9,9]", "--copy::epochs", "9"],
            r"`copy::epochs` .is set by `max_epochs`; write --max_epochs 9.",
        ),
        (["--halo", "None"], r"`halo` .MONAI drops `None`; write --halo '\$None'"),
    ],
)
def test_overrides_that_monai_would_ignore_are_refused_with_the_nearest_names(command, words, message):
    with pytest.raises(UnknownOverrideError, match=message):
        check_overrides(command(*words))


@pytest.mark.parametrize("config", ["train", "inference", "encode", "decode"])
@pytest.mark.parametrize("name", ["preset", "quantizer", "num_embeddings"])
def test_a_part_of_the_network_is_set_by_its_setting_which_the_checkpoint_will_name(config, name):
    words = [
        "--config_file",
        str(BUNDLE_ROOT / "configs" / f"{config}.yaml"),
        f"--network_def::{name}",
        "512",
    ]

    with pytest.raises(UnknownOverrideError, match=f"is set by `{name}`; write --{name} 512"):
        check_overrides(Command(words))


def test_all_unknown_ids_are_listed_at_once_with_the_files(command, config_file):
    with pytest.raises(UnknownOverrideError, match=r"got `maxepochs`.*; `seeds`") as caught:
        check_overrides(command("--maxepochs", "9", "--seeds", "1", "--max_epochs", "3"))

    assert f"must name an id of {config_file}," in str(caught.value)
    assert "`max_epochs` (" not in str(caught.value)


def test_an_overlay_brings_its_ids_and_changes_the_merged_config(tmp_path, config_file):
    overlay = tmp_path / "overlay.json"
    overlay.write_text(json.dumps({"extra": 1, "train::amp": False, "+patch_size": [2]}), encoding="utf-8")
    command = Command(["--config_file", f"['{config_file}', '{overlay}']", "--extra", "2"])

    check_overrides(command)

    assert command.merged_config()["train::amp"] is False
    assert command.merged_config()["patch_size"] == [128, 128, 128, 2]


def test_merged_config_equals_the_one_that_monai_runs(command, config_file):
    read = command("--max_epochs", "9")
    workflow = ConfigWorkflow(config_file, logging_file=False, max_epochs=9)

    assert read.merged_config().get() | read.overrides == workflow.parser.get()


def test_bundle_files_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps({"bundle_root": "."}), encoding="utf-8")

    added = arguments_from_anywhere(Command(["--config_file", "['mine.json', 'configs/metadata.json']"]))

    files = Command(added).config_files
    assert files[0] == "mine.json"
    assert files[1].endswith("/configs/metadata.json")
    assert Command(added).overrides["bundle_root"] == files[1].removesuffix("/configs/metadata.json")


def test_bundle_root_that_was_given_is_left_alone(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    assert arguments_from_anywhere(command("--bundle_root", "here")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "`config_file` must be given"), (["--config_file", "none.yaml"], "none.yaml: no such config file")],
)
def test_missing_config_files_are_named(words, message):
    with pytest.raises(FileNotFoundError, match=message):
        arguments_from_anywhere(Command(words))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.yaml", None, "none.yaml: no such config file; check `config_file`"),
        ("a.yaml", "seed: 1\n  halo: 2", r"a.yaml: is not valid YAML or JSON \(mapping values .* line 2"),
        ("a.json", '{"seed": 1', r"a.json: is not valid YAML or JSON \(Expecting"),
        (
            "a.yaml",
            "a: !!python/object/apply:os.kill [1]",
            r"a.yaml: is not valid YAML or JSON \(could not",
        ),
        ("a.json", '{"a": ' + "[" * 3000 + "]" * 3000 + "}", r"a.json: is not valid YAML or JSON \(maximum"),
        ("a.yaml", "", "a.yaml: must hold lines `id: value`, got None"),
        ("a.txt", "seed: 1", r"a.txt: is not valid YAML or JSON \(unknown file input"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(config_file, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=message):
        merge_configs([config_file, str(tmp_path / name)])
