"""Weight files made to use up memory, and a short run of the fuzzer; `fuzz_files.py` runs it for as long as asked."""

import os
import resource
import struct
import sys
import zlib

import numpy as np
import pytest
from test_convert import make_arrays, name_weights, write_legacy, write_v3

from tritongru.keras import GRU, Bidirectional
from tritongru.tools.weight_files import convert, hdf5

h5py = pytest.importorskip("h5py")
pytest.importorskip("safetensors")
fuzz_files = pytest.importorskip("fuzz_files", reason="needs the module resource, which Windows has not")


def with_variable_strings(path, places=("layer_names",)):
    """A legacy file whose named attributes are strings of a length each, as Keras 3 writes them."""
    write_legacy(path, {"gru": name_weights(make_arrays())})
    with h5py.File(path, "a") as root:
        for group, name in ((root, "layer_names"), (root["gru"], "weight_names")):
            if name in places:
                group.attrs[name] = np.array([n.decode() for n in group.attrs[name]], dtype=object)
    return path


def spoil_length(path, name, length, index=0):
    """Write `length` where the attribute `name` keeps the length of its string `index`."""
    data = bytearray(path.read_bytes())
    (start, _), *_ = hdf5.Source(None, bytes(data))._find_strings(name)
    data[start + 16 * index : start + 16 * index + 4] = struct.pack("<I", length)
    path.write_bytes(data)


@pytest.mark.parametrize("name, index", [("layer_names", 0), ("weight_names", 2)])
def test_a_string_of_four_gigabytes_is_not_allocated(tmp_path, name, index):
    path = with_variable_strings(tmp_path / "m.h5", ("layer_names", "weight_names"))
    assert convert.load_keras(path).units == 5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spoil_length(path, name, 0xFFFFFFF0, index)
    with pytest.raises(ValueError, match=f"m.h5: .*{name}' claim .* bytes in a file of"):
        convert.load_keras(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_libhdf5_itself_would_allocate_it(tmp_path):
    # When it no longer does, the check above has lost its reason.
    path = with_variable_strings(tmp_path / "m.h5")
    spoil_length(path, "layer_names", 1 << 27)
    with h5py.File(path) as root, pytest.raises(OSError, match="heap"):
        root.attrs["layer_names"]


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_attributes_of_old_and_new_files(tmp_path, libver):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver=libver) as root:
        root.attrs["layer_names"] = np.array(["gru", "none"], dtype=object)
        root.create_group("none").attrs["weight_names"] = np.array([])
        group, arrays = root.create_group("gru"), name_weights(make_arrays())
        group.attrs["weight_names"] = np.array(list(arrays), dtype=object)
        for key, array in arrays.items():
            group.create_dataset(key, data=array)
    assert convert.load_keras(path).units == 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"compression": "gzip", "shuffle": True, "fletcher32": True}, None),
        ({"compression": "lzf"}, "filters .*32000"),
        ({"chunks": (4096, 4096), "maxshape": (None, None), "compression": "gzip"}, "claims 67108864 bytes"),
    ],
    ids=str,
)
def test_stored_in_chunks(tmp_path, options, message):
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": make_arrays()})
    with h5py.File(path, "a") as root:
        del root["layers/gru/cell/vars/1"]
        root["layers/gru/cell/vars"].create_dataset("1", data=make_arrays()[1], **options)
    if message is None:
        np.testing.assert_array_equal(convert.load_keras(path).get_weights()[1], make_arrays()[1])
    else:
        with pytest.raises(ValueError, match=f"m.weights.h5: .*{message}"):
            convert.load_keras(path)


def test_a_chunk_that_unpacks_to_more_than_its_size(tmp_path):
    path = write_v3(tmp_path / "m.weights.h5", {"layers/gru": make_arrays()})
    with h5py.File(path, "a") as root:
        del root["layers/gru/cell/vars/1"]
        dataset = root["layers/gru/cell/vars"].create_dataset("1", (5, 15), "f4", chunks=(5, 15), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 26)))
    with pytest.raises(ValueError, match="m.weights.h5: .*unpacks to more than its 300 bytes"):
        convert.load_keras(path)


def test_an_attribute_of_numbers_is_refused(tmp_path):
    path = write_legacy(tmp_path / "m.h5", {"gru": name_weights(make_arrays())})
    with h5py.File(path, "a") as root:
        root.attrs["layer_names"] = np.arange(3)
    with pytest.raises(ValueError, match="'layer_names' is of type int64"):
        convert.load_keras(path)


def test_damaged_files_of_every_format(tmp_path):
    paths = fuzz_files.write_good_files(tmp_path)
    assert {type(layer) for path in paths for layer in convert.load_layers(path)} == {GRU, Bidirectional}
    report = fuzz_files.read_damaged(paths, tmp_path, seed=20, rounds=150)
    assert report["failures"] == []
    assert report["read"] > 10 and report["refused"] > 50


@pytest.mark.parametrize(
    "act, event",
    [
        (lambda folder: (folder / "new").write_text("x"), "open"),
        (lambda folder: os.mkdir(folder / "new"), "os.mkdir"),
        (lambda folder: eval("1 + 1"), "compile"),
    ],
    ids=["write", "mkdir", "eval"],
)
def test_the_watch_sees(tmp_path, act, event):
    with fuzz_files.watching() as events:
        act(tmp_path)
    assert events and events[0].startswith(event)


def test_a_failure_is_reported(tmp_path, monkeypatch):
    paths = fuzz_files.write_good_files(tmp_path)
    monkeypatch.setattr(fuzz_files.tempfile, "gettempdir", lambda: str(tmp_path.parent))
    monkeypatch.setattr(convert, "load_layers", lambda path: sys.exit(3) if "bad" in str(path) else [])
    report = fuzz_files.read_damaged(paths, tmp_path, seed=1, rounds=1)
    assert "SystemExit: 3" in report["failures"][0]
