"""The feature store: each content once, whatever happens to files, processes and shards."""
import ast
import copy
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.stages import Context, materialise
from diffprune.core.store import Store
from diffprune.data.datasets import dataset_config, load_dataset
from diffprune.data.decode import decode_bytes
from diffprune.features.embed import Backbone, embed_images, load_backbone
from diffprune.features.feature_store import BATCH_SIZES, Pace, Shards, catalogue, choose_pace, decode_small, fill, pixel_recipe
from diffprune.features.rows import collect_rows, row_folders
from diffprune.study.pipeline import Pipeline
from diffprune.study.presets import load_preset


def picture(seed, side=40):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Fotos von früher 写真"
    for i in range(12):
        place = folder / ("a b", "ç")[i % 2] / f"{i} № {i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(place)
    return folder


def read(folder, tmp_path, backbone="pixels:4", **more):
    return catalogue(folder, backbone, store=Store(tmp_path / "store"), image_size=32, progress=False, **more)


def test_a_second_time_nothing_is_decoded_or_embedded(folder, tmp_path, monkeypatch):
    first = read(folder, tmp_path)
    assert (first.n_embedded, len(first), first.classes) == (12, 12, ["a b", "ç"])
    import diffprune.features.feature_store as module
    monkeypatch.setattr(module, "decoded_ahead", lambda *a: pytest.fail("decoded again"))
    again = read(folder, tmp_path)
    assert (again.n_embedded, again.n_decoded) == (0, 0)
    assert (again.features == first.features).all() and again.ids.tolist() == first.ids.tolist()
    assert read(folder, tmp_path, None).n_decoded == 0                      # looks alone are known too


def test_the_features_are_those_of_the_images(folder, tmp_path):
    found = read(folder, tmp_path)
    data = load_dataset(folder, image_size=32, store=Store(tmp_path / "store"), progress=False)
    assert found.ids.tolist() == data.ids.tolist() and (found.labels == data.labels).all() and found.paths.tolist() == data.paths.tolist()
    assert np.allclose(found.features, embed_images(load_backbone("pixels:4"), data, progress=False), atol=1e-6)
    assert found.looks.size.tolist() == [[40, 40]] * 12


def test_new_renamed_moved_copied_and_changed_files(folder, tmp_path):
    read(folder, tmp_path)
    files = sorted(p for p in folder.rglob("*.png"))
    files[0].rename(folder / "a b" / "moved.png")
    (folder / "copy.png").write_bytes(files[1].read_bytes())
    picture(99).save(folder / "new.png")
    picture(98).save(files[2])
    assert read(folder, tmp_path).n_embedded == 2 and len(read(folder, tmp_path)) == 14


def test_recipes_never_meet(folder, tmp_path):
    read(folder, tmp_path)
    assert read(folder, tmp_path, "pixels:2").n_embedded == 12
    assert catalogue(folder, "pixels:4", store=Store(tmp_path / "store"), image_size=24, progress=False).n_embedded == 12


def test_what_cannot_be_read_is_left_out_each_time(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    (folder / "empty.jpg").write_bytes(b"")
    for _ in range(2):
        found = read(folder, tmp_path)
        assert len(found) == 12 and sorted(found.left_out.path) == ["broken.png", "empty.jpg"] and found.left_out.reason.all()
    assert "empty" in found.left_out.set_index("path").reason["empty.jpg"]


def test_a_folder_without_an_image_that_opens(tmp_path):
    folder = tmp_path / "none"
    folder.mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="image"): read(folder, tmp_path)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rest")
    found = read(folder, tmp_path)
    assert len(found) == 0 and found.features.shape[0] == 0 and len(found.looks) == 0


def test_one_image(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    picture(0).save(folder / "ein Bild.png")
    assert read(folder, tmp_path).features.shape == (1, 48)


def test_shards_with_damage_are_set_aside_and_made_again(folder, tmp_path):
    first = read(folder, tmp_path)
    shards = sorted((tmp_path / "store" / "features").glob("*/*.safetensors"))
    assert len(shards) == 2
    for damage in (lambda b: b[:-5], lambda b: b[:20] + bytes([b[20] ^ 255]) + b[21:], lambda b: b""):
        for path in sorted((tmp_path / "store" / "features").glob("*/*.safetensors")): path.write_bytes(damage(path.read_bytes()))
        again = read(folder, tmp_path)
        assert again.n_embedded == 12 and (again.features == first.features).all()
        assert read(folder, tmp_path).n_embedded == 0


def test_a_stale_temporary_file_is_no_shard(tmp_path):
    (tmp_path / ".half-123.safetensors").write_bytes(b"half")
    assert len(Shards(tmp_path).refresh()) == 0 and [p.name for p in tmp_path.iterdir()] == [".half-123.safetensors"]  # left to its writer


def test_a_file_that_changes_meanwhile_is_refused(folder, tmp_path, monkeypatch):
    import diffprune.features.feature_store as module
    known = module.record_contents
    def late(records, root, store):
        found = known(records, root, store)
        picture(77).save(next(folder.rglob("*.png")))
        return found
    monkeypatch.setattr(module, "record_contents", late)
    with pytest.raises(ValueError, match="changed while"): read(folder, tmp_path)


SCRIPT = """
import sys, time
import numpy as np
from diffprune.features.feature_store import Shards, fill
folder, pause = sys.argv[1], float(sys.argv[2])
shards, contents = Shards(folder), [bytes([i % 251, i // 251]) * 16 for i in range(200)]
def compute(part):
    time.sleep(pause)
    shards.add([contents[i] for i in part], x=np.array(part))
    print("done", flush=True)
print(fill(shards, contents, compute, block=10))
"""


def start(folder, pause):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(pause)], stdout=subprocess.PIPE, text=True)


def test_two_processes_share_the_work(tmp_path):
    two = [start(tmp_path, 0.1) for _ in range(2)]
    counts = [int(p.communicate(timeout=120)[0].split()[-1]) for p in two]
    assert sum(counts) == 200 and all(p.returncode == 0 for p in two)        # nothing twice, nothing left
    assert len(Shards(tmp_path).refresh()) == 200


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    first = start(tmp_path, 0.2)
    for _ in range(3): first.stdout.readline()
    os.kill(first.pid, signal.SIGKILL); first.wait()
    there = len(Shards(tmp_path).refresh())
    assert 30 <= there < 200
    assert int(start(tmp_path, 0).communicate(timeout=120)[0].split()[-1]) == 200 - there


def test_waiting_for_the_other_process_takes_no_work_twice(tmp_path):
    slow = start(tmp_path, 0.3)
    slow.stdout.readline()
    begin = time.monotonic()
    done = []
    shards, contents = Shards(tmp_path), [bytes([i % 251, i // 251]) * 16 for i in range(200)]
    fill(shards, contents, lambda part: (done.append(len(part)), shards.add([contents[i] for i in part], x=np.array(part))), block=10)
    assert len(Shards(tmp_path).refresh()) == 200 and sum(done) < 200 and time.monotonic() - begin < 60
    slow.communicate(timeout=60)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_small_decodes_are_like_whole_ones(tmp_path, mode):
    image = picture(5, 1000).resize((1200, 700)).convert(mode)
    exif = Image.Exif(); exif[274] = 6                                       # to be turned
    image.save(tmp_path / "x.jpg", quality=90, exif=exif)
    data = (tmp_path / "x.jpg").read_bytes()
    (small, facts), (whole, same) = decode_small(data, 64), decode_bytes(data, 64)
    assert facts == same and small.shape == whole.shape and abs(small.astype(int) - whole).mean() < 2


def test_shards_and_tables_are_keyed_without_reading_their_images(tmp_path, monkeypatch):
    import io
    import tarfile
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a-000.tar", "w") as tar:
        for i in range(5):
            buffer = io.BytesIO(); picture(i).save(buffer, "PNG")
            entry = tarfile.TarInfo(f"bild {i} ü.png"); entry.size = buffer.tell(); buffer.seek(0)
            tar.addfile(entry, buffer)
    found = read(f"webdataset:{folder}", tmp_path)
    assert found.n_embedded == 5 and found.looks.size.tolist() == [[40, 40]] * 5
    import diffprune.data.shards as shards
    monkeypatch.setattr(shards, "read_ranges", lambda where, root="": iter(()) if not list(where) else pytest.fail("read again"))
    assert read(f"webdataset:{folder}", tmp_path).n_embedded == 0


def test_a_matrix_that_is_too_large_for_memory_is_mapped(tmp_path):
    shards, contents = Shards(tmp_path), [bytes([i]) * 32 for i in range(9)]
    for i in range(0, 9, 3): shards.add(contents[i:i + 3], x=np.arange(i * 4, i * 4 + 12, dtype=np.float32).reshape(3, 4))
    order = np.random.default_rng(0).permutation(9)
    rows = shards.find([contents[i] for i in order])
    mapped = shards.gather("x", rows, in_memory=10)
    assert isinstance(mapped, np.memmap) and (mapped == np.arange(36).reshape(9, 4)[order]).all()
    assert len(list(tmp_path.iterdir())) == 3                                # and its file has no name


def test_the_pace_is_one_of_those_that_were_tried():
    pace = choose_pace(load_backbone("pixels"), [], 32, seconds=0.01)
    assert isinstance(pace, Pace) and pace.batch_size in BATCH_SIZES and pace.threads >= 1


def test_on_a_processor_a_few_images_at_a_time(folder):
    image = picture(3, 64)
    image.save(folder / "x.jpg")
    pace = choose_pace(load_backbone("pixels"), [(folder / "x.jpg").read_bytes()] * 3, 32, seconds=0.01)
    assert pace.batch_size in (1, 2, 4)


def test_other_code_of_a_backbone_is_another_recipe(monkeypatch):
    "What loads a backbone decides its features as much as what calls it."
    from diffprune.core import lineage
    from diffprune.features import embed
    before, known = pixel_recipe("pixels:4"), lineage.module_tree
    tree = copy.deepcopy(known(embed.__name__))
    [function] = [s for s in tree.body if getattr(s, "name", None) == "_load_pixels"]
    function.body.insert(0, ast.parse("side = 3").body[0])
    monkeypatch.setattr(lineage, "module_tree", lambda name: tree if name == embed.__name__ else known(name))
    assert pixel_recipe("pixels:4") != before


def test_a_study_and_the_prune_command_share_rows(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    found = catalogue("digits", "pixels:4", image_size=16, store=store, progress=False)
    pipeline = Pipeline(dataset_config("digits", image_size=16), load_preset("smoke", "digits"), "pixels:4")
    context, calls = Context(store, progress=False), []
    embed = Backbone.features_and_logits
    monkeypatch.setattr(Backbone, "features_and_logits", lambda b, x: (calls.append(len(x)), embed(b, x))[1])
    X = materialise(pipeline.features(pipeline.images(), "pixels:4"), context).array("features")
    assert (X == found.features).all() and not calls                          # the study embedded nothing
    other = Store(tmp_path / "other")
    Y = materialise(pipeline.features(pipeline.images(), "pixels:4"), Context(other, progress=False)).array("features")
    assert np.allclose(X, Y, atol=1e-6) and sum(calls) == len(X)
    assert catalogue("digits", "pixels:4", image_size=16, store=other, progress=False).n_embedded == 0  # nor does pruning after a study


def test_rows_are_listed_and_collected(folder, tmp_path):
    read(folder, tmp_path)
    store = Store(tmp_path / "store")
    assert sorted(r["name"] for r in row_folders(store)) == ["looks", "pixels:4"]
    assert len(collect_rows(store)) == 0
    recipe = next(r["path"] for r in row_folders(store) if r["name"] == "pixels:4") / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"features": "', '"features": "other '))
    told = collect_rows(store)
    assert told.reason.tolist() == ["made by other code"] and not told.deleted.any() and len(row_folders(store)) == 2
    lock = FileLock(recipe.parent / "locks" / "a.lock")
    with lock: assert len(collect_rows(store, dry_run=False)) == 0            # somebody is at it
    assert collect_rows(store, dry_run=False).deleted.all() and [r["name"] for r in row_folders(store)] == ["looks"]
    assert read(folder, tmp_path).n_embedded == 12


def test_the_command_shows_rows_and_collects_them(folder, tmp_path, monkeypatch):
    read(folder, tmp_path)
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path / "store"))
    run = lambda *args: CliRunner().invoke(app, ["store", *args])
    assert run("list").stdout.count("\nrows ") == 2 and "pixels-4-" in run("list", "features").stdout
    assert "rows" not in run("list", "images").stdout
    assert "0.0 MiB in 0 folders" in run("gc").stdout and run("gc", "--older-than", "5").exit_code == 0
    said = run("gc", "--older-than", "0").stdout
    assert "looks-" in said and "pixels-4-" in said and len(row_folders(Store(tmp_path / "store"))) == 2
    assert run("gc", "--older-than", "0", "--delete").exit_code == 0 and not row_folders(Store(tmp_path / "store"))
