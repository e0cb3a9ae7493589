"""Training with reading processes, as on every machine but a laptop: it comes to its end."""


def test_a_run_with_readers_ends_and_takes_them_with_it(python, dataset, tmp_path):
    alone, readers = tmp_path / "alone", tmp_path / "readers"
    python.run("base", dataset_dir=dataset, output_dir=alone).expect_success()

    done = python.run_cold("base", dataset_dir=dataset, output_dir=readers, num_workers=2)

    done.expect_success()
    assert (readers / "metrics.csv").read_text(encoding="utf-8") == (alone / "metrics.csv").read_text(
        encoding="utf-8"
    )


def test_a_run_that_a_damaged_volume_ends_does_not_wait_for_its_readers(python, dataset, tmp_path):
    cache = tmp_path / "cache"
    settings = {"dataset_dir": dataset, "cache_dir": cache, "num_workers": 2}
    python.run("base", **settings, output_dir=tmp_path / "first").expect_success()
    for path in cache.glob("*.ctpa"):
        content = bytearray(path.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        path.write_bytes(content)

    done = python.run_cold("base", **settings, output_dir=tmp_path / "second")

    assert done.code == 1
    assert "is damaged" in done.last_line
