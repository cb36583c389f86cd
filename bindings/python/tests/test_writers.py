"""Tables of other programs: evenkeel reads exactly the random trace that the program wrote.

pandas, polars, PyArrow, DuckDB and NumPy write random traces, also as part files of Spark, Hive partitions
and files per rank. Tokens per step, layer and expert have to be equal. Damaged variants end in an error or a
notice, or have equal tokens. ``EVENKEEL_WRITTEN`` is the number of traces.
"""

import decimal
import gzip
import json
import os
import random
import re
import uuid

import evenkeel
import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
pq = pytest.importorskip("pyarrow.parquet")
duckdb = pytest.importorskip("duckdb")

TRACES = int(os.environ.get("EVENKEEL_WRITTEN", "12"))
CODECS = ["none", "snappy", "gzip", "brotli", "lz4", "zstd"]
# Notices of any reading. They do not report damage.
USUAL = re.compile(r"inferred from the highest id|no step column|no tokens in layers|the trace holds no tokens|ranks of one table|parts of one table|no rows of the highest experts")


class Made:
    """One random trace: rows of step, layer, expert and tokens."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        draw = self.draw
        self.experts = draw.randint(5, 40)
        self.layers = sorted(draw.sample(range(60), draw.randint(1, 4)))
        self.steps = [str(step) for step in sorted(draw.sample(range(500), draw.randint(2, 7)))]
        if draw.random() < 0.3:
            self.steps = [f"prompt {step}" for step in self.steps]
        shape = (len(self.steps), len(self.layers), self.experts)
        numbers = np.random.default_rng(seed)
        self.loads = numbers.poisson(numbers.lognormal(1.0, 1.2, shape))
        # Every expert of every layer has tokens in some step.
        self.loads[0] += self.loads.sum(axis=0) == 0
        keep_zeros = draw.random() < 0.5
        self.rows = [
            (step, layer, expert, int(self.loads[s, at, expert]))
            for s, step in enumerate(self.steps)
            for at, layer in enumerate(self.layers)
            for expert in range(self.experts)
            if keep_zeros or self.loads[s, at, expert] > 0
        ]

    def frame(self, rows=None):
        rows = self.rows if rows is None else rows
        frame = pd.DataFrame(rows, columns=["step", "layer", "expert", "tokens"])
        if self.steps[0].isdigit():
            frame["step"] = frame["step"].astype("int64")
        return frame

    def counts(self):
        """Returns the non-zero tokens by (step, layer, expert)."""
        return {(step, layer, expert): tokens for step, layer, expert, tokens in self.rows if tokens}


def found(trace):
    """Returns the non-zero tokens of a trace that was read, in the same form."""
    loads, layers, kept = trace.loads(), [int(layer) for layer in trace.layers], {}
    for s, at, expert in np.argwhere(loads):
        # Steps of two runs may have the same label.
        key = (trace.steps[s], layers[at], int(expert))
        kept[key] = kept.get(key, 0) + int(loads[s, at, expert])
    return kept


# Writers of one table: (name, ending, function of a pandas frame and a path).


def pandas_csv(**options):
    return lambda frame, path: frame.to_csv(path, index=False, **options)


def floats(frame, path):
    frame.astype({"layer": "float64", "tokens": "float64"}).to_csv(path, index=False)


def savetxt(frame, path):
    if frame["step"].dtype == object or str(frame["step"].dtype).startswith("str"):
        return pandas_csv()(frame, path)
    np.savetxt(path, frame.to_numpy(), delimiter=",", header="step,layer,expert,tokens")


def comments(frame, path):
    with open(path, "w") as file:
        file.write("# made by a test\n#\n")
        frame.rename(columns={"tokens": "Count", "step": "Step"}).to_csv(file, index=False, sep="\t")
        file.write("# the end\n")


def zipped(frame, path):
    with gzip.open(path, "wt") as file:
        frame.to_csv(file, index=False)


def arrow_zstd(frame, path):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), file)


def excel(frame, path):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        file.write("sep=;\r\n")
        frame.to_csv(file, index=False, sep=";", lineterminator="\r\n")


def pandas_parquet(codec):
    def write(frame, path):
        frame.to_parquet(path, index=False, compression=None if codec == "none" else codec)

    return write


def polars_parquet(codec):
    def write(frame, path):
        types = {"layer": pl.UInt8, "expert": pl.UInt16, "tokens": pl.Float64}
        pl.from_pandas(frame).cast(types).write_parquet(path, compression="uncompressed" if codec == "none" else codec)

    return write


def polars_csv(frame, path):
    pl.from_pandas(frame).write_csv(path)


def arrow_parquet(codec, **options):
    def write(frame, path):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, path, compression=codec, row_group_size=97, **options)

    return write


def arrow_decimal(frame, path):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    tokens = pa.array([decimal.Decimal(count) for count in frame["tokens"]], pa.decimal128(30, 3))
    pq.write_table(table.set_column(3, "tokens", tokens), path)


def arrow_small_decimal(frame, path):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    tokens = pa.array([decimal.Decimal(count) for count in frame["tokens"]], pa.decimal128(9, 2))
    pq.write_table(table.set_column(3, "tokens", tokens), path, store_decimal_as_integer=True)


def arrow_categories(frame, path):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    steps = pa.array([str(step) for step in frame["step"]]).dictionary_encode()
    pq.write_table(table.set_column(0, "step", steps), path)


def duck(options, select="*"):
    def write(frame, path):
        with duckdb.connect() as db:
            db.register("trace", frame)
            db.execute(f"copy (select {select} from trace) to '{path}' ({options})")

    return write


def duck_sum(frame, path):
    with duckdb.connect() as db:
        db.register("trace", frame)
        query = "select step, layer, expert, sum(tokens) as tokens from trace group by all order by all"
        db.execute(f"copy ({query}) to '{path}' (format parquet)")


WRITERS = {
    "pandas.csv": pandas_csv(),
    "pandas-semicolon.csv": pandas_csv(sep=";"),
    "pandas-tab.tsv": pandas_csv(sep="\t"),
    "pandas-utf16.csv": pandas_csv(encoding="utf-16"),
    "pandas-utf16le.csv": pandas_csv(encoding="utf-16-le"),
    "pandas-quoted.csv": pandas_csv(quoting=1),
    "pandas-floats.csv": floats,
    "numpy-savetxt.csv": savetxt,
    "comments.tsv": comments,
    "gzip.csv.gz": zipped,
    "arrow.csv.zst": arrow_zstd,
    "excel.csv": excel,
    "polars.csv": polars_csv,
    "duckdb.csv": duck("format csv, header"),
    "duckdb-bar.csv": duck("format csv, header, delimiter '|'"),
    "arrow-v2.parquet": arrow_parquet("zstd", data_page_version="2.0", use_dictionary=False),
    "arrow-delta.parquet": arrow_parquet(
        "gzip",
        use_dictionary=False,
        column_encoding={"layer": "DELTA_BINARY_PACKED", "expert": "DELTA_BINARY_PACKED"},
    ),
    "arrow-decimal.parquet": arrow_decimal,
    "arrow-small-decimal.parquet": arrow_small_decimal,
    "arrow-categories.parquet": arrow_categories,
    "duckdb-sum.parquet": duck_sum,
    "duckdb-hugeint.parquet": duck("format parquet", "step, layer::utinyint as layer, expert, tokens::hugeint as tokens"),
    "duckdb-decimal.parquet": duck("format parquet", "step, layer, expert, tokens::decimal(38, 6) as tokens"),
    "duckdb-count.parquet": duck("format parquet", "expert as EXPERT, tokens as Count, step as Step, layer as Layer"),
    **{f"pandas-{codec}.parquet": pandas_parquet(codec) for codec in CODECS},
    **{f"polars-{codec}.parquet": polars_parquet(codec) for codec in CODECS},
    **{f"arrow-{codec}.parquet": arrow_parquet(codec) for codec in CODECS},
    **{
        f"duckdb-{codec}.parquet": duck(f"format parquet, codec '{codec}'")
        for codec in ["uncompressed", "snappy", "gzip", "brotli", "lz4_raw", "zstd"]
    },
}


# Writers of folders.


def spark(made, frame, folder):
    """Writes part files by a hash of the rows, as after a shuffle, with Spark's further files."""
    folder.mkdir()
    job, parts = uuid.UUID(int=made.draw.getrandbits(128)), made.draw.randint(2, 5)
    places = [made.draw.randrange(parts) for _ in range(len(frame))]
    for part in range(parts):
        rows = frame[[place == part for place in places]]
        if len(rows):
            name = f"part-{part:05}-{job}-c000.snappy.parquet"
            rows.to_parquet(folder / name, index=False)
            (folder / f".{name}.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()


def hive(made, frame, folder):
    keys = made.draw.choice(["step", "layer", "step, layer"])
    duck(f"format parquet, partition_by ({keys})")(frame, folder)


def hive_csv(made, frame, folder):
    duck("format csv, header, partition_by (layer)")(frame, folder)


def arrow_dataset(made, frame, folder):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_to_dataset(table, folder, partition_cols=[made.draw.choice(["step", "layer"])])


def polars_parts(made, frame, folder):
    folder.mkdir()
    half = len(frame) // 2
    for at, rows in enumerate([frame[:half], frame[half:]]):
        pl.from_pandas(rows).write_parquet(folder / f"{at:08}.parquet")


def ranks(made, frame, folder):
    """Writes one table per rank. Each has all rows with the tokens of that rank."""
    folder.mkdir()
    left, count = frame["tokens"].to_numpy().copy(), made.draw.randint(2, 4)
    for rank in range(count):
        own = left if rank == count - 1 else np.array([made.draw.randint(0, most) for most in left], dtype=np.int64)
        left = left - own
        frame.assign(tokens=own).to_csv(folder / f"counts_rank{rank}.csv", index=False)


FOLDERS = {
    "spark": spark,
    "hive": hive,
    "hive-csv": hive_csv,
    "dataset": arrow_dataset,
    "polars": polars_parts,
    "ranks": ranks,
}


# Damages of rows. Each returns rows that differ from the trace.


def duplicated(made):
    again = [row for row in made.rows if row[3] and made.draw.random() < 0.2] or [max(made.rows, key=lambda row: row[3])]
    return made.frame(made.rows + again)


def fraction(made):
    frame = made.frame()
    frame["tokens"] = frame["tokens"].astype("float64")
    frame.loc[made.draw.randrange(len(frame)), "tokens"] += 0.5
    return frame


def negative(made):
    frame = made.frame()
    frame.loc[made.draw.randrange(len(frame)), "tokens"] = -1
    return frame


def missing(made):
    frame = made.frame().astype({"tokens": "float64"})
    frame.loc[made.draw.randrange(len(frame)), made.draw.choice(["tokens"])] = float("nan")
    return frame


def words(made):
    frame = made.frame().astype({"layer": "object"})
    frame["layer"] = [f"layer {layer}" for layer in frame["layer"]]
    return frame


DAMAGES = [duplicated, fraction, negative, missing, words]


class Tried:
    """Reader that counts its files."""

    equal = refused = noticed = 0

    def __str__(self):
        total = self.equal + self.refused + self.noticed
        return f"{total} files: {self.equal} equal, {self.noticed} with a notice, {self.refused} refused"

    def equals(self, path, counts, **options):
        """Reads a valid file."""
        trace = evenkeel.read_trace(path, **options)
        assert found(trace) == counts, f"{path}: {trace.notices}"
        self.equal += 1
        return trace

    def loud(self, path, counts, **options):
        """Reads a damaged file, which must end in an error, a notice or equal tokens."""
        try:
            trace = evenkeel.read_trace(path, **options)
        except evenkeel.Error as error:
            assert str(path.name) in str(error), error
            self.refused += 1
            return
        if found(trace) == counts:
            self.equal += 1
            return
        notices = [notice for notice in trace.notices if not USUAL.search(notice)]
        assert notices, f"{path}: other tokens without a word; {trace.notices}"
        self.noticed += 1


TRIED = Tried()


def cut(made, path):
    """Returns a truncated file. The cut is never between two rows, where the rest would be a valid table."""
    bytes = path.read_bytes()
    at = made.draw.randrange(max(1, len(bytes) // 3), len(bytes) - 1)
    # The loop checks two bytes before the cut, since UTF-16 has a zero behind the line end.
    while set(bytes[at - 2 : at + 1]) & set(b"\r\n"):
        at -= 1
    short = path.with_name(f"cut-{path.name}")
    short.write_bytes(bytes[:at])
    return short


@pytest.mark.parametrize("seed", range(TRACES))
def test_tables(seed, tmp_path):
    made, tried = Made(seed), TRIED
    frame, counts = made.frame(), made.counts()
    orders = [frame, frame.sample(frac=1, random_state=seed)]
    for name, write in WRITERS.items():
        for at, table in enumerate(orders):
            path = tmp_path / f"{at}-{name}"
            write(table, path)
            tried.equals(path, counts)
        tried.loud(cut(made, path), counts)
    for name, write in FOLDERS.items():
        write(made, frame, tmp_path / name)
        tried.equals(tmp_path / name, counts)


@pytest.mark.parametrize("seed", range(TRACES))
def test_damaged_tables(seed, tmp_path):
    made, tried = Made(1000 + seed), TRIED
    counts = made.counts()
    for damage in DAMAGES:
        frame = damage(made)
        for name in ["pandas.csv", "polars.csv", "duckdb.csv", "pandas-semicolon.csv", "arrow-zstd.parquet", "duckdb-gzip.parquet"]:
            path = tmp_path / f"{damage.__name__}-{name}"
            if name == "arrow-zstd.parquet" or name.startswith("duckdb"):
                frame = frame.infer_objects()
            WRITERS[name](frame, path)
            tried.loud(path, counts)
    # Layers of other widths: all rows of some experts are missing.
    if len(made.layers) > 1 and any(row[3] == 0 for row in made.rows):
        narrow = [row for row in made.rows if row[1] != made.layers[0] or row[2] < made.experts // 2]
        path = tmp_path / "narrow.csv"
        made.frame(narrow).to_csv(path, index=False)
        with pytest.raises(evenkeel.Error, match="as in other layers"):
            evenkeel.read_trace(path)
        tried.refused += 1


def records(made, draw):
    """Returns lines of vLLM's statistics: physical experts, the last ones redundant."""
    redundant = draw.randint(0, 4)
    map = [list(range(made.experts)) + [draw.randrange(made.experts) for _ in range(redundant)] for _ in made.layers]
    for step, loads in enumerate(made.loads):
        physical = []
        for layer, slots in zip(loads, map):
            left, load = layer.copy(), []
            for slot, expert in enumerate(slots):
                last = expert not in slots[slot + 1 :]
                own = int(left[expert]) if last else draw.randint(0, int(left[expert]))
                left[expert] -= own
                load.append(own)
            physical.append(load)
        record = {"record_type": "eplb_load_stats", "version": 1, "step": step + 1, "expert_load": physical, "p2l_map": map}
        yield json.dumps(record) + "\n"


@pytest.mark.parametrize("seed", range(TRACES))
def test_records_and_arrays_of_counts(seed, tmp_path):
    made, tried = Made(2000 + seed), TRIED
    draw, loads = made.draw, made.loads

    def by_place(first):
        return {(str(s + first), int(at), int(e)): int(loads[s, at, e]) for s, at, e in np.argwhere(loads)}

    lines = list(records(made, draw))
    path = tmp_path / "load.jsonl"
    for name, text in {
        "plain": lines,
        "bom": ["\ufeff", *lines],
        "order": draw.sample(lines, len(lines)),
        "others": ['{"record_type": "session_metadata", "host": "h"}\n', *lines],
    }.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(text), encoding="utf-8")
        tried.equals(path, by_place(1))
    tried.loud(cut(made, path), by_place(1))
    for name, text in {
        "twice": lines + lines,
        "again": lines[:1] + lines,
        "models": lines + [lines[0].replace('"step": 1', '"model": "a", "step": 9'), lines[0].replace('"step": 1', '"model": "b", "step": 10')],
        "layers": lines + [json.dumps({**json.loads(lines[0]), "step": 9, "expert_load": [[1]], "p2l_map": [[0]]})],
    }.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(text))
        tried.loud(path, by_place(1))

    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": loads.tolist()}))
    kept = by_place(0)
    tried.equals(path, kept)
    tried.loud(cut(made, path), kept)
    for kind in ["int64", "int32", "uint16", "float64"]:
        path = tmp_path / f"counts-{kind}.npy"
        np.save(path, loads.astype(kind))
        tried.equals(path, kept, format="npy-counts")
        # Counts are no ids unless an option says that they are counts.
        tried.loud(path, kept)
        tried.loud(cut(made, path), kept, format="npy-counts")
    path = tmp_path / "counts.npz"
    np.savez_compressed(path, loads=loads, names=np.array(["a"]))
    tried.equals(path, kept, format="npy-counts")


@pytest.mark.parametrize("seed", range(TRACES))
def test_ids_of_tokens(seed, tmp_path):
    draw, tried = np.random.default_rng(3000 + seed), TRIED
    experts, layers, top_k = int(draw.integers(8, 64)), int(draw.integers(1, 5)), int(draw.integers(2, 6))
    tokens, batch = int(draw.integers(20, 120)), int(draw.integers(3, 20))
    ids = np.array([[draw.permutation(experts)[:top_k] for _ in range(layers)] for _ in range(tokens)])

    def counts(ids, real, batch=batch):
        """Returns the tokens per batch, layer and expert. ``real`` is false for padding."""
        kept = {}
        for token in range(len(ids) // batch * batch):
            for layer in range(ids.shape[1]):
                for expert in ids[token, layer][real[token, layer]]:
                    key = (str(token // batch), layer, int(expert))
                    kept[key] = kept.get(key, 0) + 1
        return kept

    all_real = np.ones(ids.shape, dtype=bool)
    for kind in ["uint8", "int8", "int16", "uint16", "int32", "int64", "uint64"]:
        path = tmp_path / f"{kind}.npy"
        np.save(path, ids.astype(kind))
        tried.equals(path, counts(ids, all_real), batch_tokens=batch)
        tried.loud(cut_bytes(path, draw), counts(ids, all_real), batch_tokens=batch)
        # The last tokens of a batch are padding: -1, which wraps in unsigned types, or any single id.
        padded = ids.astype("int64")
        real = all_real.copy()
        padded[-7:], real[-7:] = -1, False
        np.save(tmp_path / f"pad-{kind}.npy", padded.astype(kind))
        tried.equals(tmp_path / f"pad-{kind}.npy", counts(ids, real), batch_tokens=batch)
        for filler in [0, experts - 1, experts]:
            padded[-7:] = filler
            path = tmp_path / f"pad-{filler}-{kind}.npy"
            np.save(path, padded.astype(kind))
            tried.loud(path, counts(ids, real), batch_tokens=batch)
            tried.equals(path, counts(ids, real), batch_tokens=batch, experts=experts)
    path = tmp_path / "further.npz"
    weights = draw.random(ids.shape).astype("float32")
    np.savez(path, weights=weights, ids=ids.astype("uint8"), lengths=np.arange(3), names=np.array(["a", "b"]))
    trace = tried.equals(path, counts(ids, all_real), batch_tokens=batch)
    assert any("read array ids, ignored" in notice for notice in trace.notices)
    # One expert per token, in two dimensions.
    path = tmp_path / "top-1.npy"
    np.save(path, ids[:, :, 0].astype("int32"))
    tried.loud(path, counts(ids[:, :, :1], all_real[:, :, :1]), batch_tokens=batch)
    # Rows that name an expert twice are no routing.
    wrong = ids.copy()
    wrong[3, 0, :2], wrong[4, 0, :2] = 1, 2
    path = tmp_path / "wrong.npy"
    np.save(path, wrong)
    with pytest.raises(evenkeel.Error, match="more than once"):
        evenkeel.read_trace(path, batch_tokens=batch)
    tried.refused += 1


def cut_bytes(path, draw):
    short = path.with_name(f"cut-{path.name}")
    bytes = path.read_bytes()
    short.write_bytes(bytes[: int(draw.integers(140, len(bytes) - 1))])
    return short


def test_files_in_all(record_property):
    """Reports the number of files that the tests above tried."""
    record_property("files tried", str(TRIED))
