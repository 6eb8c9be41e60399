"""Picture files as arrays: any size, any mode, letterboxed; decoded once into a cache. Read before `coco.py`."""
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no others: some of Pillow's start other programs
MAX_PIXELS = 100_000_000
MOST_BAD = 0.01  # share of the pictures of a data set that may be damaged
PAPER = (255, 255, 255)  # behind transparent pixels
MARGIN = (128, 128, 128)  # beside a picture that is not square: grey is 0 for the model

Image.MAX_IMAGE_PIXELS = None  # in its stead: MAX_PIXELS, which is an error and no warning


def load(path, size):
    """A picture file -> (size, size, 3) uint8 RGB; the whole picture is kept, with grey margins.

    The first frame of an animation, turned as EXIF says. Raises ValueError with one line that names the file:
    missing, no picture, cut off, or more than MAX_PIXELS (which is seen before anything is decoded).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such picture")
    try:
        with Image.open(path, formats=FORMATS) as picture:  # reads the header alone
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS // 1_000_000} megapixels")
            if picture.mode in ("RGB", "L"):
                picture.draft(picture.mode, (2 * size, 2 * size))  # a JPEG is decoded no larger than is of use
            return letterbox(to_rgb(ImageOps.exif_transpose(picture)), size)
    except Exception as error:  # Pillow's decoders raise nearly every kind there is, from SyntaxError to MemoryError
        reason = " ".join(str(error).split()).replace(str(path), "the file")[:150] or type(error).__name__
        raise ValueError(f"{path}: not a readable picture: {reason}") from None


def to_rgb(picture):
    """A Pillow image of any mode -> RGB; transparency over white, 16-bit and float values scaled."""
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
        top = 65535 if picture.mode.startswith("I") and values.max() > 255 else max(values.max(), 255)
        picture = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (*PAPER, 255)), picture).convert("RGB")
    return picture.convert("RGB")


def letterbox(picture, size):
    """A Pillow RGB image -> (size, size, 3) uint8: the longer side fills, the rest is MARGIN."""
    width, height = picture.size
    scale = size / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (size, size), MARGIN)
    square.paste(picture.resize(inner, Image.BICUBIC, reducing_gap=3) if inner != picture.size else picture,
                 ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return np.array(square)


def load_all(folder, names, size, cache_dir):
    """Many pictures of a folder, decoded in parallel, once: later calls read the file in cache_dir.

    Returns (pictures: (N, size, size, 3) uint8, mapped from the disk; bad: dict of index -> what is wrong; such a
    picture is black). The cache's name holds names, sizes and times of the files: changed pictures are decoded
    anew. It gets that name when it is whole. Raises ValueError for a name that leaves the folder, a folder that is
    not there, and if more than MOST_BAD of the pictures are bad.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    if not names:
        raise ValueError(f"{folder}: no pictures are asked of it")
    paths = [inside(folder, name) for name in names]
    state = hashlib.sha256(f"1 {size} {folder.resolve()}".encode())  # 1: raised when `load` gives other pixels
    for path in paths:
        try:
            about = path.stat()
            state.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
        except OSError:
            state.update(f"{path.name} missing\n".encode("utf-8", "surrogatepass"))
    cache = Path(cache_dir) / f"pictures-{folder.name}-{len(paths)}-{size}-{state.hexdigest()[:12]}.npy"
    notes, shape = cache.with_suffix(".json"), (len(paths), size, size, 3)
    try:
        pictures = np.load(cache, mmap_mode="r", allow_pickle=False)
        if (pictures.shape, pictures.dtype) == (shape, np.uint8):
            return pictures, {int(i): reason for i, reason in json.loads(notes.read_text()).items()}
    except (OSError, ValueError, EOFError):
        pass  # none yet, or not whole
    unfinished, bad = cache.with_suffix(f".{os.getpid()}.tmp"), {}

    def decode(i):
        """The i-th picture, or a note in `bad` of what is wrong with it."""
        try:
            return load(paths[i], size)
        except ValueError as error:
            bad[i] = str(error)
            return np.zeros(shape[1:], np.uint8)

    pool = ThreadPoolExecutor(os.cpu_count())  # threads will do: Pillow decodes outside of Python's lock
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:  # not mapped: on a full disk that would be no error but a crash
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for picture in tqdm(pool.map(decode, range(len(paths))), total=len(paths), desc=f"decoding {folder.name}",
                                unit="picture"):
                file.write(picture.tobytes())
        bad = dict(sorted(bad.items()))
        if len(bad) > MOST_BAD * len(paths):
            raise ValueError(f"{folder}: {len(bad)} of {len(paths)} pictures are bad, more than {MOST_BAD:.0%}; "
                             f"the first: {next(iter(bad.values()))}")
        notes.write_text(json.dumps(bad))  # before the rename: where the pictures are, their notes are too
        os.replace(unfinished, cache)
    except OSError as error:
        raise OSError(f"--cache {cache_dir}: pictures cannot be kept there ({error.strerror})") from None
    finally:
        pool.shutdown(cancel_futures=True)
        if unfinished.exists():
            unfinished.unlink()
    return np.load(cache, mmap_mode="r", allow_pickle=False), bad


def inside(folder, name):
    """The path of a file in a folder. ValueError for a name that would leave it, or is none."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{folder}: {name!r} is no file name")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise ValueError(f"{folder}: the file name {name[:100]!r} leaves the folder; only files inside it are read")
    return folder / name
