"""Hostile command lines: every option of every command with values that it cannot use, and more.

Each line is refused in one sentence with a documented exit code, or does its work. It never ends in
a traceback, and never without an end.
"""

from collections.abc import Iterator
from typing import NamedTuple

LONG = "x" * 5000

COUNT = ("0", "-1", "1.5", "nan", "", "many", "1e3", "0x10", "½", "99999999999999999999")
DEGREE = ("", "0", "-1", "many", "1.5", "nan", "99999999999999999999", "[/b]")
NUMBER = ("-1", "nan", "inf", "-inf", "", "much", "1e999", "1,5", "½")
SIZE = ("", "0", "-1GiB", "nan", "inf", "1e400GiB", "80 apples", "GiB", "٣GiB")
RATE = ("", "0", "-1GB/s", "nan", "infGB/s", "1e-400GB/s", "1e400GB/s", "fast", "100")
CHOICE = ("", "nothing", "STEP", "\x1b[31m", "[/b]", LONG)
LAYER = ("", " ", "nobody", "[/b]", "h.0,h.0", "\n", "\udcff", LONG)
PIN = ("", "=", "h.0", "h.0=", "=1", "h.0=-1", "h.0=99", "h.0=many", "nobody=0", "[/b]=0")
PAIR = ("", ",", "h.0", "h.0,", "h.0,h.0", "h.0,nobody", "[/b],\x1b")
INPUT = (
    "", "absent.json", "folder", "broken.json", "empty.json", "text.txt", "binary.json",
    "dangling.json", "pipe.json", "/dev/null", "profile.json/below", "\x1b[31m.json", "a\nb.json",
    "\udcff.json", f"{LONG}.json", "層.json", "wrong.json",
)  # fmt: skip
OUTPUT = (
    "", "folder", "text.txt", "profile.json/below.json", "/dev/full", "/proc/none/out.json",
    "pipe.json", f"{LONG}.json", "model.py",
)  # fmt: skip
MODEL = (
    "", "absent.py", "folder", "text.txt", "zoo:", "zoo:nobody", "zoo:[/b]", "model.py:", ":", "::",
    "model.py:nobody", "model.py:build_model:more", "os:getcwd", "no.such.package:model", "os",
    "syntax.py", "raising.py", "exiting.py", "binary.json", "\x1b[31m", "a\nb.py", LONG,
)  # fmt: skip
TEXT = ("", " ", "[/b]", "\x1b[31m", "\udcff", LONG)


class Verb(NamedTuple):
    """One command: a line that works or nearly works, and the values for each of its options."""

    base: str
    """The line. Hostile options are appended, and the last one counts."""
    options: dict[str, tuple[str, ...]]
    arguments: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Lines with `{}` for one argument, and the argument's values."""


CLUSTER = {
    "--gpus": COUNT, "--nodes": COUNT, "--gpus-per-node": COUNT,
    "--gpu": ("", "z100", "[/b]", "h100-sxm:", "h100-sxm:0", "h100-sxm:x", ":", ",", LONG),
    "--memory": SIZE, "--reserve": (*SIZE, "1PiB"), "--intra-bandwidth": RATE,
    "--inter-bandwidth": RATE, "--host-bandwidth": RATE, "--host-memory": SIZE, "--cluster": INPUT,
}  # fmt: skip
"""The options for a cluster."""
POLICIES = {
    "--recompute": CHOICE, "--recompute-layer": LAYER, "--selective-layer": LAYER,
    "--keep-layer": LAYER, "--offload": CHOICE, "--offload-layer": LAYER, "--offload-optimizer": CHOICE,
}  # fmt: skip
"""The options for activation policies."""
TRAINING = {
    "--optimizer": (*CHOICE, "-1", "nan", "1e999"), "--precision": (*CHOICE, "-mixed"), "--sync": CHOICE,
    "--sync-bucket": SIZE, "--sends": CHOICE, "--gradient-dtype": CHOICE, "--shard": (*CHOICE, "zero3"), "--shard-degree": (*COUNT, "1"),
}  # fmt: skip
"""The options for the training that is priced."""
ELSEWHERE = {name: values[:1] for name, values in (CLUSTER | POLICIES | TRAINING).items()}
"""One value for each option that `solve` tries with all."""


VERBS = {
    "profile": Verb(
        "profile model.py --warmup 0 --repeats 1 -o new.json",
        {
            "--output": OUTPUT, "--microbatch-size": COUNT, "--dtype": CHOICE, "--device": CHOICE,
            "--gpu": ("", "z100", "[/b]", "h100-sxm"), "--warmup": ("-1", "nan", "", "many"),
            "--repeats": ("0", "-1", "nan", "", "many"), "--max-spread": NUMBER,
            "--granularity": CHOICE, "--threads": ("0", "-1", "nan", "", "99999999999999999999"),
            "--tensor": (*DEGREE, ",", "2,", "2,2", "3"), "--target": CHOICE, "--calibrate": INPUT,
            "--context": (*DEGREE, ",", "2,", "2,2", "3"), "--sequence-length": (*COUNT, "7"),
            "--expert": (*DEGREE, ",", "2,", "2,2", "3"),
        },
        (("profile {} --warmup 0 --repeats 1 -o new.json", MODEL),),
    ),
    "probe": Verb(
        "probe -o new.json",
        {
            "--ranks": ("0", "1", "-1", "nan", "", "many"), "--output": OUTPUT, "--device": CHOICE,
            "--threads": ("0", "-1", "nan", "", "99999999999999999999"), "--timeout": NUMBER,
            "--limit": NUMBER, "--dtype": ("", "int8"), "--gpu": ("z100",), "--target": ("jax",),
        },
        (
            ("probe --kernels --device cpu -o {}", ("folder", "profile.json/below.json", "model.py")),
            ("probe --kernels --device cpu -o new.json --gpu {}", ("", "z100", "[/b]", "h100-sxm")),
            ("probe --kernels --device cpu -o new.json --target {}", CHOICE),
            ("probe --kernels --device cpu -o new.json {}", ("--network", "--ranks=2", "--dtype=int8")),
        ),
    ),
    "scale-profile": Verb(
        "scale-profile profile.json --microbatch 8 -o new.json",
        {
            "--output": OUTPUT, "--microbatch": COUNT, "--seq": COUNT, "--dtype": CHOICE, "--gpu": ("", "z100", "[/b]", LONG),
            "--blocks": ("", "2", "-1", "many", "1.5", "99999999999999999999"), "--target": CHOICE,
        },
        (("scale-profile {} --microbatch 8 -o new.json", INPUT),),
    ),
    "calibrate": Verb(
        "calibrate from-steps text.txt --gpu h100-sxm -o new.json",
        {
            "--output": OUTPUT, "--gpu": ("", "z100", "[/b]", LONG), "--dtype": CHOICE, "--target": CHOICE,
            "--cluster": CHOICE, "--kinds": (*CHOICE, ",", "products,"),
        },
        (
            ("calibrate {} text.txt --gpu h100-sxm -o new.json", CHOICE),
            ("calibrate from-steps {} --gpu h100-sxm -o new.json", INPUT),
            ("calibrate from-profile {} -o new.json", INPUT),
        ),
    ),
    "profiles": Verb("profiles", {}, (("profiles {}", CHOICE),)),
    "clusters": Verb(
        "clusters dgx-h100",
        {"--nodes": COUNT, "--output": OUTPUT},
        (("clusters {}", CHOICE), ("clusters {} -o new.json", TEXT)),
    ),
    "import": Verb(
        "import pipedream graph.txt -o new.json",
        {"--output": OUTPUT},
        (("import {} graph.txt -o new.json", CHOICE), ("import pipedream {} -o new.json", INPUT)),
    ),
    "import-plan": Verb(
        "import-plan megatron --profile profile.json --gpus 2 --global-batch 8 --time-limit 1 --layout Et*3|t*3L "
        "-o new.json",
        {
            "--layout": (*TEXT, "E|L", "Et*999999999|L", "((", "E(t|)*99999999L", "t*6", "[[", "Et*6L", "0,1"),
            **ELSEWHERE, "--profile": INPUT, "--global-batch": COUNT, "--time-limit": NUMBER, "--file": INPUT,
            "--stages-per-rank": COUNT, "--tensor": COUNT, "--schedule": CHOICE, "--target": CHOICE,
            "--sequence-parallel": CHOICE[:2], "--pipeline-size": COUNT, "--first-layers": COUNT[1:], "--last-layers": COUNT[1:],
            "--map": (*PAIR, "=", "a{i}=b", "{i}{i}=b", "h.0=head"), "--output": OUTPUT,
        },
        (
            ("import-plan {} --profile profile.json --gpus 2 --layout [[]]", CHOICE),
            ("import-plan megatron --profile profile.json --gpus 2 --file {} -o new.json", INPUT),
            ("import-plan torchtitan --profile profile.json --gpus 2 --file {} -o new.json", INPUT),
            ("import-plan device-map --profile profile.json --gpus 2 --file {} -o new.json", INPUT),
            ("import-plan deepspeed --profile profile.json --gpus 2 --layout {} -o new.json", (*TEXT, "0,2,9", "0", "2,1")),
            ("import-plan vllm --profile profile.json --gpus 2 --layout {} -o new.json", (*TEXT, "3,3", "3,4", "-1,7", "0,6")),
        ),
    ),
    "bottleneck": Verb(
        "bottleneck pipedream graph.txt --gpus 2 --time-limit 1",
        {
            "--gpus": COUNT, "--nodes": COUNT, "--bandwidth": RATE, "--memory": SIZE,
            "--microbatches": COUNT, "--time-limit": NUMBER,
        },
        (
            ("bottleneck {} graph.txt --gpus 2", CHOICE),
            ("bottleneck pipedream {} --gpus 2", INPUT),
            ("bottleneck piper {} --gpus 2", INPUT),
            ("bottleneck dnn-partitioning {} --gpus 2", INPUT),
        ),
    ),
    "solve": Verb(
        "solve --profile profile.json --gpus 2 --global-batch 8 --time-limit 1 -o new.json",
        {
            "--profile": INPUT, **CLUSTER, **POLICIES, **TRAINING, "--global-batch": COUNT,
            "--microbatch-size": ("", "0", "-1", "1,", "1,1", ",", "many", "1.5", "7", "1" * 30),
            "--objective": CHOICE, "--target": CHOICE, "--schedule": (*CHOICE, ",", "1f1b,", "1f1b,1f1b", "1f1b,zigzag"),
            "--stages-per-rank": COUNT, "--stages": COUNT,
            "--replicas": ("", "0", "-1", "many", "1.5", "99999999999999999999", "[/b]"),
            "--pin": PIN, "--same-stage": PAIR, "--different-stage": PAIR, "--solver": CHOICE,
            "--time-limit": NUMBER, "--memory-sweep": ("0", "1", "-1", "nan", "", "many"),
            "--output": OUTPUT, "--tensor": (*DEGREE, "per_stage", "per-stage,2"), "--sequence-parallel": CHOICE,
            "--context": (*DEGREE, ",", "2,", "2,2", "3"), "--context-exchange": (*CHOICE, "ring", "gather"),
            "--expert": (*DEGREE, ",", "2,", "2,2", "3"), "--expert-imbalance": (*NUMBER, *INPUT[:3], "1.5", "measured"),
        },
    ),
    "size": Verb(
        "size --profile profile.json --tokens 1e6 --gpu cpu=0.1 --global-batch 8 --most-gpus 2 --time-limit 1 -o new.json",
        {
            **{name: values[:1] for name, values in (POLICIES | TRAINING).items()}, "--profile": INPUT, "--tokens": ("0", *NUMBER, "1e30"), "--within": ("", "0d", "-1d", "nand", "30", "1e999d", "soon"),
            "--gpu": ("", "=", ",", "cpu", "cpu=", "=1", "cpu=0", "cpu=-1", "cpu=nan", "cpu=inf", "cpu=1,cpu=2", "z100=1", "h100-sxm=2",
                      "[/b]=1", "absent.json=1", "cluster.json=1", "folder=1", "broken.json=1", f"{LONG}=1", "\x1b[31m=1"),
            "--budget": ("0", "1e-9", *NUMBER), "--tokens-per-sample": COUNT,
            "--counts": (*TEXT, "0", "1,", "3,5", "-1", "1.5", "99999999999999999999", "nodes", "dividing"), "--gpus-per-node": COUNT,
            "--most-gpus": COUNT, "--count-limit": NUMBER, "--plans": ("", "text.txt", "profile.json/x", "/proc/none", f"{LONG}"),
            "--output": OUTPUT, "--global-batch": (*COUNT, "7"), "--microbatch-size": ("", "0", "3"), "--objective": (*CHOICE, "bottleneck"),
            "--target": CHOICE[:2], "--schedule": CHOICE[:2], "--stages-per-rank": COUNT[:2], "--stages": ("0", "99"), "--replicas": ("0", "many"),
            "--pin": PIN[:3], "--same-stage": PAIR[:3], "--different-stage": PAIR[:3], "--solver": (*CHOICE[:2], "uniform"),
            "--time-limit": NUMBER, "--tensor": DEGREE[:4], "--sequence-parallel": CHOICE[:2], "--context": DEGREE[:3], "--context-exchange": CHOICE[:2],
            "--expert": DEGREE[:3], "--expert-imbalance": NUMBER[:3],
        },
        (("size --profile {} --tokens 1e6 --gpu cpu=0.1 --global-batch 8 --time-limit 1", INPUT[:6]),),
    ),
    "show": Verb("show plan.json", {}, (("show {}", INPUT), ("show --memory --json {}", INPUT), ("show --orders --json {}", INPUT))),
    "report": Verb(
        "report plan.json --profile profile.json --time-limit 1 -o new.json",
        {"--profile": INPUT, "--run": INPUT, "--size": INPUT, "--time-limit": NUMBER, "--output": OUTPUT},
        (("report {} -o new.json", INPUT),),
    ),
    "explain": Verb(
        "explain plan.json --profile profile.json --time-limit 1",
        {
            "--profile": INPUT, "--time-limit": NUMBER,
            "--what-if": (
                *TEXT, "=", "memory", "memory=", "memory=x", "memory=nanx", "memory=-1e999%", "nodes=99999999999999999999",
                "nodes=1e12x", "recompute=sometimes", "schedule=,", "tensor=many", "global-batch=-1", "a=b", ",", "objective=x",
                "inter-bandwidth=1e-400x", "stages=99", "memory=+99999999PiB", "gpus-per-node=1e7",
            ),
        },
        (("explain {} --profile profile.json", INPUT),),
    ),
    "doctor": Verb("doctor", {}, (("doctor {}", INPUT[:3]),)),
    "compare": Verb(
        "compare plan.json plan.json",
        {"--within": (*NUMBER, "%", "1000%", "-1%")},
        (
            ("compare plan.json {}", INPUT),
            ("compare --profiles profile.json {}", INPUT),
            ("compare {}", INPUT[:4]),
        ),
    ),
    "simulate": Verb(
        "simulate plan.json",
        {
            "--trace": OUTPUT, "--noise": (*NUMBER, "0", "1000"), "--profile": INPUT, "--fill": NUMBER,
            "--draws": ("0", "-1", "nan", "", "many"), "--seed": ("nan", "", "many", "1.5", "-1"),
        },
        (("simulate {}", INPUT), ("simulate {} --asynchronous", INPUT[:6])),
    ),
    "verify": Verb(
        "verify plan.json --profile profile.json",
        {"--profile": INPUT, "--target": CHOICE, "--map": (*PAIR, "=", "a{i}=b", "{i}{i}=b")},
        (("verify {} --profile profile.json", INPUT),),
    ),
    "run": Verb(
        "run plan.json model.py --steps 1",
        {
            "--steps": COUNT, "--optimizer": CHOICE, "--lr": NUMBER, "--device": CHOICE, "--clip-norm": ("0", *NUMBER),
            "--timeout": NUMBER, "--seed": ("nan", "", "many", "1.5", "99999999999999999999999"),
            "--backend": CHOICE, "--asynchronous": CHOICE, "--sync": CHOICE, "--save": OUTPUT, "--load": INPUT,
        },
        (("run {} model.py", INPUT), ("run plan.json {} --local", MODEL[:3])),
    ),
    "validate": Verb(
        "validate plan.json model.py --steps 1",
        {
            "--steps": COUNT, "--tolerance": NUMBER, "--trace": OUTPUT, "--optimizer": CHOICE,
            "--device": CHOICE, "--threads": ("0", "-1", "nan", "", "99999999999999999999"),
            "--timeout": NUMBER, "--seed": ("nan", "", "many", "1.5", "99999999999999999999999"),
        },
        (("validate {} model.py", INPUT), ("validate plan.json {} --one-device", MODEL)),
    ),
    "export": Verb(
        "export plan.json --to torch -o out",
        {
            "--to": CHOICE, "--target-version": TEXT, "--output": ("", "text.txt", "profile.json/x", "/proc/none"),
            "--map": (*PAIR, "=", "a{i}=b", "{i}{i}=b", "nobody=head"), "--model": MODEL[:4], "--profile": INPUT[:8],
        },
        (("export {} --to torch -o out", INPUT), ("export plan.json --to accelerate --profile {} -o out", INPUT[:8]), ("export {} --to device-map -o out", INPUT[:8])),
    ),
}  # fmt: skip

WHOLE = (
    "", "--nothing", "nothing", "[/b]", "\x1b[31m", LONG, "--help --help", "-o", "solve solve",
    "solve", "solve --gpus", "solve -o", "solve --gpus 2 --gpus 0", "solve --gpus 8 --nodes 3",
    "solve --gpus 8 --nodes 2 --gpus-per-node 2", "solve --gpus 2 --cluster cluster.json --gpu l40s",
    "solve --gpus 2 --profile profile.json --profile profile.json",
    "solve --gpus 2 --profile profile.json --profile plan.json",
    "solve --gpus 2 --profile profile.json --memory 1B", "solve --gpus 2 --profile profile.json --stages 99",
    "solve --gpus 2 --profile profile.json --stages 2 --replicas 2",
    "solve --gpus 2 --profile profile.json --global-batch 7",
    "solve --gpus 2 --profile profile.json --pin h.0=0 --pin h.0=1",
    "solve --gpus 2 --profile profile.json --same-stage h.0,h.1 --different-stage h.0,h.1",
    "solve --gpus 2 --profile profile.json --recompute-layer h.0 --keep-layer h.0",
    "solve --gpus 2 --profile profile.json --stages-per-rank 2 --replicas per-stage",
    "solve --gpus 2 --profile profile.json --objective bottleneck --replicas per-stage",
    "solve --gpus 2 --profile profile.json --objective period --replicas per-stage",
    "solve --gpus 2 --profile profile.json --objective period --tensor per-stage",
    "solve --gpus 2 --profile profile.json --objective period --target megatron",
    "solve --gpus 2 --profile profile.json --objective period --solver uniform -o new.json",
    "solve --gpus 2 --profile profile.json --schedule 1f1b --stages-per-rank 2",
    "solve --gpus 1 --profile profile.json --schedule chimera",
    "solve --gpus 2 --profile profile.json --schedule gems --replicas 1",
    "solve --gpus 3 --profile profile.json --schedule chimera --stages 3",
    "solve --gpus 2 --profile profile.json --schedule chimera --global-batch 7",
    "solve --gpus 1 --profile profile.json --schedule bpipe",
    "solve --gpus 3 --profile profile.json --schedule bpipe --stages 3",
    "solve --gpus 2 --profile profile.json --schedule bpipe --sends rendezvous",
    "solve --gpus 2 --profile profile.json --schedule bpipe --objective period",
    "solve --gpus 2 --profile profile.json --gpu h100-sxm:2,l40s:2",
    "solve --gpus 2 --profile profile.json --gpu h100-sxm:1,l40s:1 --memory 1GiB",
    "solve --gpus 2 --profile profile.json --reserve 1TiB --memory 1GiB",
    "solve --gpus 2 --profile profile.json --memory-sweep 2 --time-limit 1 --memory 1B",
    "solve --gpus 2 --profile profile.json extra", "show", "show plan.json plan.json", "show profile.json",
    "show cluster.json", "show --memory", "size", "size --tokens 1e6", "size --profile profile.json --tokens 1e6 --gpu cpu=0.1",
    "explain", "explain plan.json", "report", "report plan.json --run plan.json", "compare", "compare --profiles", "compare --profiles profile.json",
    "simulate", "simulate plan.json --asynchronous --noise 1",
    "simulate plan.json --profile profile.json --noise 0.1", "verify", "verify plan.json",
    "verify plan.json --profile plan.json", "verify profile.json --profile profile.json",
    "verify plan.json --profile profile.json --target torch", "verify plan.json --target",
    "run", "run plan.json", "run plan.json model.py", "run plan.json model.py --local --device cuda",
    "run plan.json model.py --local --asynchronous pipedream --backend torch --check",
    "run plan.json model.py --local --asynchronous hetpipe", "run plan.json model.py --asynchronous avgpipe --local",
    "run plan.json model.py --local --asynchronous pipemare --check", "run plan.json model.py --local --asynchronous wpipe",
    "run plan.json model.py --local --asynchronous pipeoptim --optimizer sgd",
    "run plan.json model.py --local --asynchronous spectrain --optimizer adamw --check",
    "run plan.json model.py --local --asynchronous xpipe --optimizer sgd-momentum",
    "run plan.json model.py --local --asynchronous xpipe --compile", "run plan.json model.py --local --asynchronous spectrain --save out",
    "run plan.json model.py --local --steps 0", "run plan.json model.py --local --lr nan",
    "run plan.json model.py --local --timeout nan", "run plan.json model.py --local --seed 99999999999999999999999",
    "solve --profile profile.json --gpus 2 --shard zero3 --zero1 -o new.json", "solve --profile profile.json --gpus 2 --shard zero3 --shard-degree 3 -o new.json",
    "solve --profile profile.json --gpus 2 --shard none --shard-degree 2 -o new.json", "solve --profile profile.json --gpus 2 --shard zero2,zero4 -o new.json",
    "solve --profile profile.json --gpus 2 --shard zero2 --tensor per-stage -o new.json", "solve --profile profile.json --gpus 1 --shard auto --shard-degree 2 -o new.json",
    "solve --profile profile.json --gpus 2 --shard zero3 --target megatron -o new.json", "solve --profile profile.json --gpus 2 --context 2 -o new.json",
    "solve --profile profile.json --gpus 2 --context 2 --target torchtitan -o new.json", "solve --profile profile.json --gpus 2 --shard zero3 --batch 3 -o new.json",
    "solve --profile profile.json --gpus 2 --context auto --shard auto --tensor auto -o new.json",
    "solve --profile profile.json --gpus 2 --expert 2 -o new.json", "solve --profile profile.json --gpus 2 --expert 2 --target megatron -o new.json",
    "solve --profile profile.json --gpus 2 --context 2 --target megatron -o new.json", "solve --profile profile.json --gpus 2 --expert auto --target primus -o new.json",
    "solve --profile profile.json --gpus 2 --expert auto --tensor per-stage -o new.json",
    "solve --profile profile.json --gpus 2 --expert auto --expert-imbalance 1.5 -o new.json", "solve --profile profile.json --gpus 2 --expert 1,2 --expert-imbalance measured -o new.json",
    "solve --profile profile.json --gpus 2 --context auto --context-exchange ring -o new.json", "solve --profile profile.json --gpus 2 --context-exchange gather -o new.json",
    "validate", "validate plan.json", "validate plan.json model.py --one-device --local",
    "validate plan.json model.py --trace profile.json", "export", "export plan.json", "export --to torch",
    "export plan.json --to nothing", "export plan.json --to megatron -o out", "export --list --to nothing",
    "export plan.json --to torch --check --model absent.py -o out", "import", "import pipedream", "import-plan", "import-plan megatron",
    "import-plan megatron --profile profile.json", "import-plan megatron --profile profile.json --gpus 2",
    "import-plan vllm --profile profile.json --gpus 2 --pipeline-size 2",
    "import-plan megatron --profile profile.json --gpus 2 --first-layers 3",
    "import-plan megatron --profile profile.json --gpus 2 --pipeline-size 2 --layout Et*3|t*3L",
    "import-plan megatron --profile profile.json --gpus 3 --layout Et*3|t*3L",
    "bottleneck", "bottleneck pipedream", "bottleneck pipedream graph.txt", "probe", "probe --ranks 1", "probe --ranks 2 --network", "probe --network --limit 1",
    "profile", "profile zoo:nobody --device meta --gpu h100-sxm", "profile model.py --gpu h100-sxm",
    "profile model.py --device meta", "profile model.py -o profile.json/x", "scale-profile", "scale-profile profile.json", "calibrate", "calibrate from-steps",
    "calibrate from-steps text.txt", "profile model.py --target torch", "profile model.py --calibrate profile.json",
    "profile model.py --device meta --gpu h100-sxm --target jax", "profile model.py --device meta --gpu h100-sxm --calibrate plan.json",
)  # fmt: skip
"""Lines that lack something, say something twice, or contradict themselves."""


def hostile_lines() -> Iterator[tuple[str, ...]]:
    """Every line, in a fixed order."""
    for line in WHOLE:
        yield (line,) if line in ("\x1b[31m", LONG) else tuple(line.split(" ")) if line else ()
    for verb in VERBS.values():
        for option, values in verb.options.items():
            for value in values:
                yield (*verb.base.split(), option, value)
        for line, values in verb.arguments:
            for value in values:
                yield tuple(value if word == "{}" else word for word in line.split())
