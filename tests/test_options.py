"""Nonsense on the command line of any program is one line that names the option and the mend, never a traceback."""
import pytest

from driving import driver, errors_of, pytestmark, whole  # noqa: F401  driver and whole are fixtures

BIG = str(10**30)
USAGE = [  # program, nonsense, what the one line says
    ("train", "--sft-steps -1", "--sft-steps: -1 is below 0"),
    ("train", "--pretrain-steps x", "--pretrain-steps: invalid number"),
    ("train", "--batch-size 0", "--batch-size: 0 is below 1"), ("train", f"--batch-size {BIG}", "--batch-size: 10000"),
    ("train", "--attention both", "--attention: invalid choice: 'both' (choose from"),
    ("train", "--order x", "--order: invalid choice"), ("train", "--preset huge", "--preset: invalid choice"),
    ("train", "--data x", "--data: invalid choice"), ("train", "--save-every nan", "--save-every: nan is no number"),
    ("train", "--save-every inf", "--save-every: inf is above"),
    ("train", "--save-every -1", "--save-every: -1 is below 0"),
    ("train", "--save-every 1e300", "--save-every: 1e300 is above"), ("train", f"--seed {BIG}", "--seed: 10000"),
    ("train", "--seed -1", "--seed: -1 is below 0"), ("train", "--seed 1.5", "--seed: invalid"),
    ("train", f"--scenes {10**12}", "--scenes: 1000000000000 is above 2,000,000"),
    ("train", "--scenes 0", "--scenes: 0 is below 1"),
    ("train", f"--val-scenes {10**12}", "--val-scenes: 1000000000000 is above"),
    ("train", "--log-every 0", "--log-every: 0 is below 1"),
    ("train", "--eval-every nan", "--eval-every: invalid number"),
    ("train", "--sft-steps " + "9" * 5000, "--sft-steps: invalid number"),
    ("train", "--name ../x", "--name: '../x' is no name of one folder under runs/: take letters"),
    ("train", "--name /tmp/x", "--name: '/tmp/x'"), ("train", "--name a/b", "--name: 'a/b'"),
    ("train", "--name .", "--name: '.'"), ("train", "--name ..", "--name: '..'"),
    ("train", "--name=-x", "--name: '-x'"), ("train", "--name a\\b", "--name: "),
    ("train", "--name " + "x" * 300, "--name: 'xxx"), ("train", ["--name", ""], "--name: ''"),
    ("train", ["--name", "a\nb"], "--name: 'a\\nb'"), ("train", ["--name", "a\0b"], "--name: 'a\\x00b'"),
    ("train", ["--name", "a\x1b[2J"], "--name: 'a\\x1b[2J'"), ("train", ["--name", "\udcff"], "--name: '\\udcff'"),
    ("train", ["--resume", ""], "--resume: a path is wanted"),
    ("train", ["--pretrained", ""], "--pretrained: a path is wanted"),
    ("train", ["--cache", ""], "--cache: a path is wanted"), ("train", ["--cache", "a\0"], "--cache: a path is wanted"),
    ("train", "--resume runs/whole --seed 1", "--resume takes no other option"),
    ("train", "--float32 --resume=runs/whole", "--resume takes no"),
    ("train", "--res runs/whole", "unrecognized arguments: --res"),
    ("train", "--resume", "--resume: expected one argument"), ("train", "--bogus", "unrecognized arguments: --bogus"),
    ("train", "bogus", "unrecognized arguments: bogus"), ("train", "--data coco", "--coco-dir"),
    ("train", "--coco-dir x", "--data coco"), ("train", "--limit 3", "--limit goes with"),
    ("eval_pope", "--scenes 0", "--scenes: 0 is below 1"),
    ("eval_pope", f"--scenes {10**12}", "--scenes: 1000000000000 is above"),
    ("eval_pope", "--seed -1", "--seed: -1 is below 0"), ("eval_pope", f"--seed {BIG}", "--seed: 1000"),
    ("eval_pope", "--bogus", "--bogus"),
    ("eval_pope", "--sheet file/x.png", "--sheet: file/x.png cannot be written (Not a directory)"),
    ("eval_pope", "--sheet x.doc", "--sheet x.doc: the picture's name must end in .png"),
    ("eval_pope", "--pope x", "--images"), ("eval_pope", "--build x", "--out"),
    ("eval_pope", "--strict", "--strict goes with --pope"), ("bench", "--steps 0", "--steps: 0 is below 1"),
    ("bench", "--steps nan", "--steps: invalid number"), ("bench", "--scenes 63", "--scenes: 63 is"),
    ("bench", f"--scenes {10**12}", "--scenes: 1000000000000 is above"),
    ("bench", "--preset x", "--preset: invalid choice"),
    ("bench", "--json file/x", "--json: file/x cannot be written (Not a directory)"),
    ("bench", "--json /proc/x", "--json: /proc/x cannot be"), ("ablate", "--seeds 0", "--seeds: 0 is below 1"),
    ("ablate", "--seeds x", "--seeds: invalid number"), ("ablate", f"--seeds {BIG}", "--seeds: 1"),
    ("ablate", "--steps -3", "--steps: -3 is below 1"), ("compare", "--seeds 0", "--seeds: 0 is below 1"),
    ("compare", "--seeds nan", "--seeds: inv"), ("compare", "--scenes 0", "--scenes: 0 is below 1"),
    ("compare", "--bogus", "--bogus"), ("sample", "--scene -1", "--scene: -1 is below 0"),
    ("sample", f"--scene {BIG}", "--scene: 1000"), ("sample", ["--question", " "], "--question"),
    ("sample", "a b c", "one or two runs"),
]
OTHER = [
    ("train", "--batch-size 1", "--batch-size 1: must be 2 or more"),
    ("train", "--batch-size 49", "--batch-size 49: must be"), ("train", f"--batch-size {10**9}", "(--scenes 48)"),
    ("train", "--device cuda:99", "--device cuda:99: not on this machine"),
    ("train", "--device meta", "--device meta: not on this machine"),
    ("train", ["--device", ""], "--device : not on this machine"),
    ("train", "--device nonsense", "leave the option out"),
    ("train", "--flex --device cpu", "--flex: FlexAttention cannot train on cpu"),
    ("train", "--cache file/x", "--cache file/x: pictures cannot be kept there (Not a directory)"),
    ("train", "--cache /proc/x", "--cache /proc/x: "),
    ("train", "--name whole", "--name whole: runs/whole exists already; choose another name"),
    ("train", "--resume nowhere", "--resume nowhere: "),
    ("train", "--resume file", "--resume file: no run to go on with"),
    ("train", "--resume empty", "--resume empty: no run to go on with"),
    ("train", "--resume runs/whole", "--resume runs/whole: that run is finished"),
    ("train", "--resume runs/whole/pretrained.pt", "--resume runs/"),
    ("train", "--pretrained empty", "--pretrained: empty/model.pt: no such checkpoint"),
    ("train", "--pretrained file", "--pretrained: file: not a"),
    ("train", "--pretrained nowhere", "--pretrained: nowhere: no such"),
    ("train", "--pretrained runs/whole", "give the file pretrained.pt"),
    ("train", "--pretrained /dev/zero", "--pretrained: /dev/zero: no such"),
    ("train", "--data coco --coco-dir nowhere", "--coco-dir nowhere"),
    ("eval_pope", "nowhere", "nowhere: no such checkpoint"), ("eval_pope", "file", "file: not a whole checkpoint"),
    ("eval_pope", "empty", "empty/model.pt: no"),
    ("eval_pope", "runs/whole --cache file/x", "--cache file/x: pictures cannot be kept"),
    ("eval_pope", "--device meta", "--device meta: not on"), ("eval_pope", "--build file --out x", "file, line 1"),
    ("eval_pope", "runs/whole --pope file --images empty", "file, line 1"),
    ("bench", "--device meta", "--device meta: not on"),
    ("bench", "--preset base --scenes 64 --cache cache", "--batch-size 256: must be"),
    ("bench", "--cache file/x --scenes 64", "--cache file/x: pictures"),
    ("sample", "nowhere", "nowhere: no such checkpoint"),
    ("sample", "runs/whole --device meta --question x", "--device meta"),
    ("sample", "runs/whole --question x --image file", "file: not a readable"),
]


@pytest.mark.parametrize("table, wanted", [(USAGE, 2), (OTHER, 1)])
def test_nonsense_is_refused_in_one_line_that_names_it(driver, whole, table, wanted):
    (driver.folder / "file").write_text("x")
    (driver.folder / "empty").mkdir(exist_ok=True)
    before = sorted((driver.folder / "runs").iterdir())
    for program, nonsense, says in table:
        arguments = nonsense.split() if isinstance(nonsense, str) else nonsense
        code, _, errors = driver.run(*arguments, program=program)
        lines = errors_of(program, errors)
        assert code == wanted and len(lines) == 1, (program, nonsense, code, errors)
        assert says in lines[0] and lines[0].isprintable(), (program, nonsense, errors)
    assert sorted((driver.folder / "runs").iterdir()) == before  # none has left a folder


@pytest.mark.parametrize("program, says", [
    ("train", "/runs cannot be made"), ("mma", "masks.png cannot be written here"),
    pytest.param("scenes", "scenes.png", marks=pytest.mark.slow)])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(driver, whole, program, says):
    code, _, errors = driver.run(program=program, folder="/proc")
    [line] = errors_of(program, errors)
    assert code == 1 and says in line


def test_a_cache_on_a_full_disk_is_one_line_and_leaves_nothing(driver, whole):
    code, _, errors = driver.run("--scenes", 700, "--cache", "small", "--name", "small", most_bytes=1_000_000)
    [line] = errors_of("train", errors)
    assert code == 1 and "--cache small: pictures cannot be kept there (File too large)" in line
    assert not list((driver.folder / "small").iterdir()) and not (driver.folder / "runs" / "small").exists()
