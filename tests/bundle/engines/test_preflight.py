"""Each check can pass and can fail, and says what to do."""

import os
import shutil

import pytest
import torch

from bundle.engines import preflight
from bundle.engines.preflight import (
    Check,
    PreflightError,
    check_data,
    check_device,
    check_disk,
    check_memory,
    check_ranks,
    check_start,
    check_writable,
    judge_memory,
    refuse_errors,
    store_bytes,
)
from bundle.losses.objective import GeneratorObjective
from bundle.networks.vqgan import build_vqgan

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def volumes(*names):
    return [{"image": f"{name}.nii.gz", "patient": name} for name in names]


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that torch sees so many GPUs."""

    def pretend(count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)

    return pretend


def test_data_passes_with_its_split_and_warns_of_volumes_on_both_sides():
    split = {"training": volumes("a", "b", "c"), "validation": volumes("d")}
    told = "3 training volumes of 3 patients, 1 validation volume of 1 patient"
    assert check_data(split) == Check("data", "ok", told)

    shared = check_data({"training": volumes("a"), "validation": volumes("a")})
    assert shared.level == "warning" and "at least two patients" in shared.told


def test_an_output_folder_passes_below_a_writable_one_and_fails_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert check_writable(tmp_path / "new" / "run").level == "ok"
    assert not (tmp_path / "new").exists()
    assert check_writable(tmp_path / "file" / "run").told.endswith("is a file; give another --output_dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_below_one_that_is_locked_fails(tmp_path):
    tmp_path.chmod(0o500)
    assert check_writable(tmp_path / "run").level == "error"


def test_a_disk_passes_with_room_and_fails_without(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert check_disk(tmp_path / "run", 1, "checkpoints").level == "ok"
    full = check_disk(tmp_path / "run", free * 2, "checkpoints")
    assert full.level == "error" and "give another --output_dir" in full.told
    assert "give another --cache_dir" in check_disk(tmp_path, free * 2, "patch store").told


def test_a_device_passes_if_it_computes_in_the_wanted_precision(gpus):
    gpus(1)
    assert check_device(CPU, amp=True).level == "ok"
    assert check_device(GPU, amp=True) == Check("device", "ok", "cuda:0, bf16")
    gpus(1, bf16=False)
    assert "--amp false" in check_device(GPU, amp=True).told
    assert check_device(GPU, amp=False).level == "ok"


@pytest.mark.parametrize(
    ("environment", "level", "told"),
    [
        ({}, "ok", "1 process"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "error", "start one process (without torchrun,"),
        ({"SLURM_NTASKS": "4"}, "warning", "this SLURM job asked for 4 tasks, but one process was started"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, "ok", "1 process"),
        (
            {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
            "error",
            "or with srun --ntasks=1)",
        ),
        ({"SLURM_NTASKS": "many"}, "ok", "1 process"),
    ],
)
def test_processes_that_are_not_connected_fail_and_idle_tasks_are_told(monkeypatch, environment, level, told):
    for name in ("WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    found = check_ranks()

    assert found.level == level
    assert told in found.told


@pytest.mark.parametrize(
    ("needed", "oom_policy", "level"),
    [
        (2**30, "stop", "ok"),
        (2**31 + 1, "stop", "error"),
        (2**31 + 1, "degrade", "warning"),
        (None, "stop", "error"),
        (None, "degrade", "warning"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice_unless_the_run_may_shrink(needed, oom_policy, level):
    found = judge_memory(needed, 2**31, oom_policy)
    assert found.level == level
    assert ("--micro_batch_size 1" in found.told) == (level != "ok")
    assert "2,048 free MiB" in found.told


def test_on_a_cpu_memory_is_not_known_and_no_iteration_is_run(tiny_vqgan, small_run):
    run, calls = small_run(tiny_vqgan(), 1), []
    run.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = check_memory(run.trainer, (24, 24, 24), 2)
    assert found.level == "ok" and "not known" in found.told and "MiB are free" in found.told
    assert calls == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_that_is_measured_before_a_run_is_what_the_run_then_takes(small_run):
    run = small_run(build_vqgan("lite", "ema", 1024), 3, start=0, size=64, device="cuda")
    found = check_memory(run.trainer, (64, 64, 64), 2)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run.run()
    taken = (torch.cuda.max_memory_allocated() - held) / 2**20
    measured = float(found.told.partition("takes ")[2].partition(" of ")[0].replace(",", ""))
    assert 0.9 < measured / taken < 1.1


def test_a_store_that_exists_needs_no_more_room(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"0" * 100)
    cases = {"training": [{"image": str(tmp_path / "a.nii.gz")}], "validation": []}
    assert store_bytes(cases, tmp_path / "cache") == 200
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "volume").write_text("")
    assert store_bytes(cases, tmp_path / "cache") == 0


def test_a_new_store_has_room_for_dicom_series_and_none_for_prepared_volumes(tmp_path):
    for folder in ("alone", "shared"):
        (tmp_path / folder).mkdir()
        for name in ("1", "2", "3"):
            (tmp_path / folder / name).write_bytes(bytes(128) + b"DICM" + bytes(68))
    (tmp_path / "a.ctpa").write_bytes(b"0" * 100)
    images = ["alone", "shared/1", "shared/2", "a.ctpa"]
    cases = {"training": [{"image": str(tmp_path / image)} for image in images], "validation": []}

    assert store_bytes(cases, tmp_path / "cache") == 6 * 200


def test_errors_are_told_together_and_warnings_do_not_end_the_run(caplog):
    refuse_errors([Check("a", "ok", "fine"), Check("b", "warning", "tight")])
    with pytest.raises(PreflightError, match="c: too small; d: too big"):
        refuse_errors([Check("c", "error", "too small"), Check("d", "error", "too big")])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_a_run_is_checked_whole_without_leaving_a_trace(tiny_vqgan, tmp_path, monkeypatch):
    checks = check_start(
        output_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        cases={"training": volumes("a"), "validation": volumes("b")},
        network=tiny_vqgan(),
        objective=GeneratorObjective(1.0, 0.25),
        device="cpu",
        amp=True,
    )
    assert {check.level for check in checks} == {"ok"}
    assert [check.name for check in checks] == [
        "data", "output", "disk for checkpoints", "disk for patch store", "device", "ranks",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_module_offers_a_line_per_check():
    assert str(preflight.Check("data", "ok", "found")) == "ok      data: found"
