"""COCO as a folder for `train.py --data`.

    python -m extras.coco DIR --get [N]    downloads a small COCO, with N = 20,000 pictures
    python -m extras.coco DIR              converts what you have downloaded yourself

--get downloads some 4 GB, of which 300 MB stay in DIR: train.jsonl (N pictures of train2014),
val.jsonl (1,000 others) and test.jsonl (the 500 of val2014 that POPE asks about), their pictures,
shrunk, and POPE's questions: `eval_pope.py RUN --pope DIR/pope/*.json --images DIR/val2014`. Until
the end DIR/coco_download holds 1.5 GB more. A mirror (--from URL) has URL/*.zip, URL/*.json and
URL/{train,val}2014/*.jpg. All this was only tried on a local server: we reached no real one.

What you have downloaded is train2014/ and val2014/, or those of 2017, with pictures, annotations/
with captions_*.json and instances_*.json, and, if you like, VQA v2: v2_*_questions.json and
v2_*_annotations.json. With only one folder of pictures only train.jsonl is written: the trainer
holds out a tenth of it. POPE asks about pictures of val2014, most of which are in train2017, too:
those that its files (DIR/coco_pope_*.json or DIR/pope/*.json) ask about are left out.
"""
import json
import re
import shutil
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path, PurePath
from urllib.request import urlopen
from zipfile import ZipFile

from PIL import Image, ImageOps
from tqdm import tqdm

from data import check_line, read_lines

PARTS = ("train2014", "val2014", "train2017", "val2017")  # of one year, the first that is there

# What is downloaded. The addresses of the pictures are in the first archive.
VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_{}_mscoco.zip"
POPE = "https://raw.githubusercontent.com/AoiDragon/POPE/main/output/coco/coco_pope_{}.json"
KINDS = ("Questions_Train", "Annotations_Train", "Questions_Val", "Annotations_Val")
ARCHIVES = ["http://images.cocodataset.org/annotations/annotations_trainval2014.zip"]
ARCHIVES += [VQA.format(kind) for kind in KINDS]
QUESTIONS = [POPE.format(split) for split in ("random", "popular", "adversarial")]
HELD_OUT, SIDE = 1000, 160  # pictures for val.jsonl; pixels of the shorter side of a picture
THREADS, TRIES, PAUSE, TIMEOUT = 16, 3, 2, 30  # the last two in seconds


def outputs(folder, *names):
    """The files NAME.jsonl that shall be written. SystemExit if one is there already."""
    paths = [folder / f"{name}.jsonl" for name in names]
    for path in paths:
        if path.exists() or path.is_symlink():
            raise SystemExit(f"{path} is there already: delete it first")
    return paths


def read(path, *keys):
    """The lists of objects under the keys of a JSON file. SystemExit if it has none."""
    def without_bulk(entry):  # what would fill gigabytes of memory and is not used
        return {key: entry[key] for key in entry if key not in ("segmentation", "answers")}

    print(f"reading {path}")
    try:
        content = json.loads(path.read_text("utf-8-sig"), object_hook=without_bulk)
        return [[{**entry} for entry in content[key]] for key in keys]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SystemExit(f"{path}: {', '.join(keys)}: lists of objects are wanted ({error!r:.99})")


def clean(text):
    """A text on one line, or "" if it is no text."""
    return " ".join(text.split()) if isinstance(text, str) else ""


def number(name):
    """The COCO id in the name of a picture: "COCO_val2014_000000310196.jpg" -> "310196"."""
    stem = PurePath(name).stem
    return re.search(r"\d*$", stem)[0].lstrip("0") or stem


def known(annotations, part, categories, objects):
    """Yields (id of a picture, line for the trainer); what is missing in the line is empty."""
    names = {str(entry.get("id")): clean(entry.get("name")) for entry in categories}
    objects_of = defaultdict(list)
    for entry in objects:
        picture = str(entry.get("image_id"))
        if name := names.get(str(entry.get("category_id"))):
            objects_of[picture].append(name)
        else:
            yield picture, {"objects": []}
    for picture in objects_of:
        yield picture, {"objects": objects_of[picture]}
    [captions] = read(annotations / f"captions_{part}.json", "annotations")
    for entry in captions:
        yield str(entry.get("image_id")), {"caption": clean(entry.get("caption"))}
    for path in sorted(annotations.glob("v2_mscoco_*_annotations.json")):
        beside = path.name.replace("v2_", "v2_OpenEnded_").replace("annotations", "questions")
        [questions] = read(annotations / beside, "questions")
        texts = {str(entry.get("question_id")): clean(entry.get("question")) for entry in questions}
        [answers] = read(path, "annotations")
        for entry in answers:
            question = texts.get(str(entry.get("question_id")), "")
            answer = clean(entry.get("multiple_choice_answer"))
            line = {"question": question, "answer": answer, "kind": "vqa"}
            yield str(entry.get("image_id")), line


def convert(annotations, part, there, asked=()):
    """The lines about pictures of a part, such as "train2014", from a folder of annotations.

    there: names of the pictures to take, but not if their numbers are in `asked`. What is left out
    is counted and printed. SystemExit if nothing is left.
    """
    keys = "images", "categories", "annotations"
    images, categories, objects = read(annotations / f"instances_{part}.json", *keys)
    files, lines, left_out = {}, [], Counter()
    for image in images:
        picture, name = str(image.get("id")), PurePath(str(image.get("file_name"))).name
        if number(name) in asked:
            left_out["pictures that POPE asks about"] += 1
        elif name not in there or picture in files:
            left_out["pictures without a file or an id of their own"] += 1
        else:
            files[picture] = f"{part}/{name}"
    for picture, line in known(annotations, part, categories, objects):
        if picture in files and all(line.values()):
            lines.append(json.dumps({"image": files[picture], **line}) + "\n")
        else:
            left_out["entries that are empty or about other pictures"] += 1
    print(f"{part}: {len(lines):,} lines about {len(files):,} pictures; left out: {dict(left_out)}")
    if not lines:
        raise SystemExit(f"{annotations}: nothing is written, there is no line about {part}")
    return lines


def pictures_asked(path):
    """The numbers of the pictures that a POPE file asks about. SystemExit if it is no such file."""
    asked = set()
    for where, question in read_lines(path):
        check_line(where, question, [])
        asked.add(number(question["image"]))
    return asked


def convert_own(folder):
    """What somebody has downloaded. All is converted before the first file is written."""
    paths = outputs(folder, "train", "val")
    parts = [part for part in PARTS if (folder / part).is_dir()]
    if not parts:
        raise SystemExit(f"{folder}: no folder of pictures ({', '.join(PARTS)}) is in it")
    files = [*folder.glob("coco_pope_*.json"), *folder.glob("pope/*.json")]
    asked = set().union(*map(pictures_asked, files))
    texts = []
    for part in [part for part in parts if part[-4:] == parts[0][-4:]]:
        there = {path.name for path in (folder / part).iterdir()}
        texts.append("".join(convert(folder / "annotations", part, there, asked)))
    for path, text in zip(paths, texts):
        path.write_text(text)


# Downloading. DIR/coco_download, the store, is for what is not whole yet, and the annotations.
def download(url, path):
    """Write what is at an address into a file. OSError if less arrives than was announced."""
    with urlopen(url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        size = int(response.headers.get("Content-Length", 0))
        quiet = ".zip" not in path.name  # a bar for each picture would be too many
        with tqdm.wrapattr(file, "write", size, desc=path.stem, disable=quiet) as target:
            shutil.copyfileobj(response, target)
        if size and file.tell() != size:
            raise OSError(f"{file.tell():,} of {size:,} bytes arrived")


def unpack(path):
    """Write the annotations in an archive beside it. BadZipFile if they are damaged."""
    with ZipFile(path) as archive:
        for member in archive.infolist():
            member.filename = PurePath(member.filename).name  # without the folders in the archive
            if re.fullmatch(r"(captions|instances|v2)_\w+\.json", member.filename):
                archive.extract(member, path.parent)


def shrink(path):
    """Make a picture file a small JPEG. Raises what Pillow raises if it is no whole picture."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    scale = min(1, SIDE / min(picture.size))
    small = picture.resize([round(scale * side) for side in picture.size])
    small.save(path, "JPEG", quality=85)


def fetch(url, path, store, finish):
    """Download a file, unless it is there, and `finish` it in the store before it is there.

    Returns None, or what went wrong in the last try.
    """
    if path.exists():
        return None
    partial = store / f"{path.name}.part"
    for _ in range(TRIES):
        try:
            download(url, partial)
            finish(partial)
            partial.replace(path)
            return None
        except (Exception, SystemExit) as error:  # networks and files raise nearly every kind
            problem = f"{url}: {error!r:.199}"
            time.sleep(PAUSE)
    return problem


def get_pictures(addresses, folder, store):
    """Download the pictures that are not in the folder yet.

    addresses: name of a picture -> address. Returns the names of those that are there then; what
    fails is counted and printed. OSError if more than one in a hundred fails.
    """
    pool, failed = ThreadPoolExecutor(THREADS), {}
    try:
        problems = pool.map(lambda name: fetch(addresses[name], folder / name, store, shrink),
                            addresses)
        for problem, name in zip(tqdm(problems, folder.name, len(addresses)), addresses):
            if problem:
                failed[name] = problem
            if len(failed) > 0.01 * len(addresses):
                raise OSError(f"too many pictures fail, such as {problem}")
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{folder}: {len(failed)} of {len(addresses):,} pictures failed", *[*failed.values()][:1])
    return addresses.keys() - failed


def list_pictures(store, part, mirror):
    """Yields (name, address) of each picture of a part, in the order of a hash of their ids.

    SystemExit if a name is not the plain name of a file, or an address none of the network.
    """
    path = store / f"captions_{part}.json"
    [images] = read(path, "images")
    for image in sorted(images, key=lambda x: sha256(str(x.get("id")).encode()).hexdigest()):
        name = PurePath(str(image.get("file_name"))).name
        url = f"{mirror}/{part}/{name}" if mirror else str(image.get("coco_url"))
        if not (re.fullmatch(r"\w[\w-]*\.\w+", name, re.ASCII) and re.match("https?://", url)):
            raise SystemExit(f"{path}: {name!r} at {url!r}: a plain name at http://... is wanted")
        yield name, url


def get(folder, count, mirror=None):
    """Download a small COCO with `count` pictures to train on. OSError if that fails."""
    paths = outputs(folder, "test", "val", "train")
    store, pope = folder / "coco_download", folder / "pope"
    for path in (store, pope, folder / "train2014", folder / "val2014"):
        path.mkdir(parents=True, exist_ok=True)
    for url in ARCHIVES + QUESTIONS:
        name = PurePath(url).name
        path, finish = (store / name, unpack) if url in ARCHIVES else (pope / name, pictures_asked)
        if problem := fetch(f"{mirror}/{name}" if mirror else url, path, store, finish):
            raise OSError(problem)
    asked = set().union(*map(pictures_asked, pope.glob("*.json")))
    test = [x for x in list_pictures(store, "val2014", mirror) if number(x[0]) in asked]
    train = list(list_pictures(store, "train2014", mirror))
    val, train = train[:HELD_OUT], train[HELD_OUT:][:count]  # so val is the same for every count
    parts = ("val2014", "train2014", "train2014")
    for path, part, chosen in zip(paths, parts, (test, val, train)):
        there = get_pictures(dict(chosen), folder / part, store)
        (store / path.name).write_text("".join(convert(store, part, there)))
    for path in paths:
        (store / path.name).replace(path)
    shutil.rmtree(store)


def main():
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder with COCO, or for it")
    parser.add_argument("--get", metavar="N", nargs="?", type=int, const=20000,
                        help="download COCO, with N pictures to train on (default: 20000)")
    parser.add_argument("--from", metavar="URL", dest="mirror", help="a mirror to download from")
    options = parser.parse_args()
    if options.get is None and not options.mirror:
        return convert_own(options.folder)
    if (options.get or 0) < 1:
        parser.error("--get wants a number from 1 on, and --from goes with --get")
    try:
        get(options.folder, options.get, options.mirror and options.mirror.rstrip("/"))
    except (OSError, KeyboardInterrupt) as error:  # such as no network, or no space left
        raise SystemExit(f"{str(error) or 'stopped'}; the same command goes on from here")


if __name__ == "__main__":
    main()
