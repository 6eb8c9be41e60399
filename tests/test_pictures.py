"""Picture files: every mode and size becomes one array, and what is no picture is named."""
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import pictures


def picture(path, mode="RGB", size=(40, 20), color=None, **options):
    """Write a picture of one colour; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (200, 40, 90)) if color is None else Image.new(mode, size, color)
    image.convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("mode, name", [("RGB", "a.jpg"), ("RGB", "a.png"), ("P", "a.png"), ("RGBA", "a.png"),
                                        ("CMYK", "a.jpg"), ("RGB", "a.webp"), ("P", "a.gif"), ("RGB", "a.bmp")])
def test_every_mode_becomes_rgb(tmp_path, mode, name):
    found = pictures.load(picture(tmp_path / name, mode), 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    assert np.abs(found[8, 8].astype(int) - (200, 40, 90)).max() <= 12, found[8, 8]


def test_grey_and_sixteen_bit_pictures_keep_their_brightness(tmp_path):
    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    Image.fromarray(np.full((9, 9), 77 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((9, 9), 77.0, np.float32)).save(tmp_path / "float.tiff")
    for name in ("grey.png", "deep.png", "float.tiff"):
        assert (pictures.load(tmp_path / name, 9) == 77).all(), name


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (pictures.load(tmp_path / "clear.png", 8) == 255).all()


def test_the_whole_picture_is_kept_between_grey_margins(tmp_path):
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    image.save(tmp_path / "wide.png")
    found = pictures.load(tmp_path / "wide.png", 32)
    assert (found[:8] == pictures.MARGIN).all() and (found[24:] == pictures.MARGIN).all()
    assert (found[8:24, :12] == (255, 0, 0)).all() and (found[8:24, 20:] == (0, 0, 255)).all()
    Image.new("RGB", (5000, 1), (255, 0, 0)).save(tmp_path / "thin.png")
    assert (pictures.load(tmp_path / "thin.png", 32) == (255, 0, 0)).all(-1).sum() == 32  # never less than one row


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 32, 16))  # black above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    found = pictures.load(tmp_path / "turned.png", 32)
    assert found[4, 16].mean() > 200 and found[28, 16].mean() < 50


def refused(path, says):
    with pytest.raises(ValueError, match=says) as stopped:
        pictures.load(path, 16)
    assert str(path) in str(stopped.value) and "\n" not in str(stopped.value)


def test_what_is_no_whole_picture_is_named(tmp_path):
    refused(tmp_path / "none.jpg", "no such picture")
    refused(tmp_path, "no such picture")  # a folder
    (tmp_path / "text.jpg").write_text("this is a text")
    refused(tmp_path / "text.jpg", "not a readable picture: cannot identify")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "not a readable picture")
    rng = np.random.default_rng(0)
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:len(whole) // 2])
        refused(tmp_path / name, "not a readable picture")


def png_header(width, height):
    """A PNG that claims a size and holds nothing: what unpacks to terabytes must be refused unseen."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_more_than_a_hundred_megapixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    refused(tmp_path / "bomb.png", "20000 x 20000 pixels are more than 100 megapixels")


@pytest.fixture
def folder(tmp_path):
    """Two hundred small pictures, enough for one or two to be bad."""
    for i in range(200):
        picture(tmp_path / "pics" / f"{i:03}.png", size=(6, 6), mode="RGB", color=(i, 0, 0))
    return tmp_path / "pics"


def test_pictures_are_decoded_once(folder, tmp_path, monkeypatch):
    names = sorted(os.listdir(folder))
    first, bad = pictures.load_all(folder, names, 8, tmp_path / "cache")
    assert first.shape == (200, 8, 8, 3) and not bad and [int(i) for i in first[:, 4, 4, 0]] == list(range(200))
    monkeypatch.setattr(pictures, "load", lambda *_: pytest.fail("decoded again"))
    again, _ = pictures.load_all(folder, names, 8, tmp_path / "cache")
    assert (again == first).all()


def test_changed_pictures_are_decoded_anew(folder, tmp_path):
    pictures.load_all(folder, ["000.png", "001.png"], 8, tmp_path / "cache")
    picture(folder / "000.png", size=(6, 6), mode="RGB", color=(99, 0, 0))
    os.utime(folder / "000.png", ns=(1, 1))
    found, _ = pictures.load_all(folder, ["000.png", "001.png"], 8, tmp_path / "cache")
    assert found[0, 4, 4, 0] == 99


def test_an_interrupted_decoding_leaves_nothing_that_looks_whole(folder, tmp_path, monkeypatch):
    names, load = sorted(os.listdir(folder)), pictures.load

    def interrupted(path, size):
        if path.name == "150.png":
            raise KeyboardInterrupt
        return load(path, size)

    monkeypatch.setattr(pictures, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictures.load_all(folder, names, 8, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy")) and not list((tmp_path / "cache").glob("*.tmp"))
    monkeypatch.setattr(pictures, "load", load)
    assert pictures.load_all(folder, names, 8, tmp_path / "cache")[0][199, 4, 4, 0] == 199


def test_a_few_bad_pictures_are_named_and_many_are_an_error(folder, tmp_path):
    names = sorted(os.listdir(folder))
    for name in ("007.png", "123.png"):
        (folder / name).write_bytes(b"no picture")
    for _ in range(2):  # decoded, then from the cache
        found, bad = pictures.load_all(folder, names, 8, tmp_path / "cache")
        assert list(bad) == [7, 123] and "007.png: not a readable picture" in bad[7] and not found[7].any()
    (folder / "009.png").unlink()
    with pytest.raises(ValueError, match="3 of 200 pictures are bad, more than 1%; the first: .*007.png"):
        pictures.load_all(folder, names, 8, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "", "a\0.png", 7, "..\\b.png"])
def test_file_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leaves the folder|is no file name"):
        pictures.load_all(tmp_path, [name], 8, tmp_path / "cache")


def test_mutated_pictures_are_read_or_refused(tmp_path):
    """Bytes changed, cut and added at random: an array of the right shape, or one line."""
    rng, outcomes, path = np.random.default_rng(0), [], tmp_path / "mutated"
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        whole = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(whole, kind)
        for _ in range(80):
            data = bytearray(whole.getvalue())
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(0, len(data))] = rng.integers(0, 256)
            path.write_bytes(data[:rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else bytes(data))
            try:
                assert pictures.load(path, 16).shape == (16, 16, 3)
                outcomes.append(True)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                outcomes.append(False)
    assert len(outcomes) == 480 and 50 < sum(outcomes) < 430
